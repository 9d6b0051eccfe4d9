"""The schema registry over real Kafka: Confluent's API, one writer, ids that never change."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from headrace.runtime.dev.processes import free_ports, spawn, stop
from headrace.runtime.dev.stack import Stack


def record(*fields):
    return json.dumps({"type": "record", "name": "event", "fields": list(fields)})


ID = {"name": "id", "type": "string"}
ONE = record(ID)
COMPATIBLE = record(ID, {"name": "note", "type": ["null", "string"], "default": None})
INCOMPATIBLE = record(ID, {"name": "note", "type": "string"})


@pytest.fixture
def client(stack):
    with httpx.Client(base_url=stack.registry_url, timeout=30) as client:
        yield client


def register(client, subject, schema):
    return client.post(f"/subjects/{subject}/versions", json={"schema": schema})


def code(response):
    return response.status_code, response.json()["error_code"]


def test_a_schema_is_registered_once_and_read_back_in_every_way(client, unique_name):
    schema = record({"name": unique_name, "type": "string"})

    schema_id = register(client, unique_name, schema).json()["id"]

    assert register(client, unique_name, schema).json() == {"id": schema_id}
    assert register(client, f"{unique_name}-other", schema).json() == {"id": schema_id}
    assert client.get(f"/subjects/{unique_name}/versions").json() == [1]
    found = client.get(f"/subjects/{unique_name}/versions/latest").json()
    assert found | {"schema": json.loads(found["schema"])} == {
        "subject": unique_name,
        "id": schema_id,
        "version": 1,
        "schema": json.loads(schema),
    }
    by_id = client.get(f"/schemas/ids/{schema_id}").json()["schema"]
    assert json.loads(by_id) == json.loads(schema)
    assert client.get(f"/subjects/{unique_name}/versions/1/schema").json() == json.loads(schema)
    assert client.post(f"/subjects/{unique_name}", json={"schema": schema}).json() == found
    assert {"subject": unique_name, "version": 1} in client.get(
        f"/schemas/ids/{schema_id}/versions"
    ).json()
    assert unique_name in client.get("/subjects").json()


def test_answers_carry_confluents_media_type(client):
    media_type = client.get("/subjects").headers["content-type"]

    assert media_type == "application/vnd.schemaregistry.v1+json"


def test_a_request_in_confluents_media_type_is_understood(client, unique_name):
    answer = client.post(
        f"/subjects/{unique_name}/versions",
        content=json.dumps({"schema": ONE, "schemaType": "AVRO"}),
        headers={"content-type": "application/vnd.schemaregistry.v1+json"},
    )

    assert answer.status_code == 200


def test_what_is_not_there_is_answered_with_confluents_codes(client, unique_name):
    register(client, unique_name, ONE)

    assert code(client.get("/subjects/nowhere/versions")) == (404, 40401)
    assert code(client.get(f"/subjects/{unique_name}/versions/9")) == (404, 40402)
    assert code(client.get("/schemas/ids/999999")) == (404, 40403)
    assert code(client.post(f"/subjects/{unique_name}", json={"schema": COMPATIBLE})) == (
        404,
        40403,
    )
    assert code(client.post("/subjects/nowhere", json={"schema": ONE})) == (404, 40401)


@pytest.mark.parametrize(
    "body",
    [
        {"schema": "no json"},
        {"schema": '{"type": "recrod", "name": "a", "fields": []}'},
        {"schema": ONE, "schemaType": "JSON"},
        {"schema": ONE, "references": [{"name": "a", "subject": "b", "version": 1}]},
    ],
)
def test_what_is_no_avro_schema_on_its_own_is_refused(client, unique_name, body):
    answer = client.post(f"/subjects/{unique_name}/versions", json=body)

    assert code(answer) == (422, 42201)


def test_a_subject_takes_only_what_readers_and_writers_of_all_versions_can_bear(
    client, unique_name
):
    register(client, unique_name, ONE)

    assert register(client, unique_name, COMPATIBLE).status_code == 200
    refused = register(client, unique_name, INCOMPATIBLE)

    assert code(refused) == (409, 409)
    assert "note" in refused.json()["message"]
    assert client.get(f"/subjects/{unique_name}/versions").json() == [1, 2]


def test_compatibility_is_asked_without_registering(client, unique_name):
    register(client, unique_name, ONE)
    path = f"/compatibility/subjects/{unique_name}/versions/latest"

    good = client.post(path, json={"schema": COMPATIBLE}).json()
    bad = client.post(path, params={"verbose": "true"}, json={"schema": INCOMPATIBLE}).json()

    assert good == {"is_compatible": True}
    assert not bad["is_compatible"]
    assert bad["messages"]
    assert client.get(f"/subjects/{unique_name}/versions").json() == [1]


def test_a_subjects_level_decides_what_it_takes(client, unique_name):
    register(client, unique_name, ONE)
    path = f"/config/{unique_name}"
    assert code(client.get(path)) == (404, 40408)
    default = client.get(path, params={"defaultToGlobal": "true"}).json()
    assert default == {"compatibilityLevel": "FULL_TRANSITIVE"}

    answer = client.put(path, json={"compatibility": "NONE"}).json()

    assert answer == {"compatibility": "NONE"}
    assert client.get(path).json() == {"compatibilityLevel": "NONE"}
    assert register(client, unique_name, INCOMPATIBLE).status_code == 200
    assert client.delete(path).json() == {"compatibilityLevel": "NONE"}
    assert code(client.put(path, json={"compatibility": "SOME"})) == (422, 42203)


def test_a_deleted_subject_is_gone_while_its_id_stays_readable(client, unique_name):
    schema_id = register(client, unique_name, ONE).json()["id"]
    register(client, unique_name, COMPATIBLE)

    assert client.delete(f"/subjects/{unique_name}/versions/2").json() == 2
    assert client.delete(f"/subjects/{unique_name}").json() == [1]

    assert unique_name not in client.get("/subjects").json()
    assert client.get(f"/schemas/ids/{schema_id}").status_code == 200
    register(client, unique_name, ONE)
    assert client.get(f"/subjects/{unique_name}/versions").json() == [3]


def test_many_at_once_get_one_id_a_schema_and_one_schema_an_id(client, unique_name):
    schemas = [record({"name": f"{unique_name}_{i % 10}", "type": "string"}) for i in range(60)]

    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(
            lambda i: register(client, f"{unique_name}-{i}", schemas[i]), range(len(schemas))
        )
        ids = [answer.json()["id"] for answer in answers]

    assert len(set(zip(ids, schemas, strict=True))) == len(set(ids)) == 10


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a stack of Kafka and the registry that a test may hurt."""
    stack = Stack(tmp_path_factory.mktemp("registry"), services=("kafka", "registry"))
    with stack:
        yield stack


def kill_registry(own, wait_until):
    (ours,) = (one for one in own.status() if one.name == "registry")
    os.kill(ours.pid, signal.SIGKILL)
    wait_until(lambda: [one.state for one in own.status()] == ["running", "stopped"])


def serve(folder, endpoints, instance):
    (port,) = free_ports(1)
    command = [sys.executable, "-P", "-m", "headrace.serving.registry", "--instance", instance]
    record = spawn(
        [*command, "--bootstrap", endpoints.bootstrap_servers, "--port", str(port)],
        folder / f"{instance}.log",
        folder,
    )
    return record, port


@contextlib.contextmanager
def stopping(process):
    try:
        yield
    finally:
        stop(process, 20)


def answers(client, path, expected):
    try:
        return client.get(path).json() == expected
    except httpx.TransportError:
        return False


def test_a_second_instance_reads_refuses_writes_by_name_and_takes_over_when_the_first_is_gone(
    own, tmp_path, wait_until
):
    endpoints = own.up()
    second_process, port = serve(tmp_path, endpoints, "second")
    with (
        httpx.Client(base_url=endpoints.registry_url, timeout=30) as first,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as second,
        stopping(second_process),
    ):
        schema_id = register(first, "shared", ONE).json()["id"]
        wait_until(lambda: answers(second, "/subjects/shared/versions", [1]))

        refused = register(second, "shared", COMPATIBLE)

        assert code(refused) == (422, 42205)
        assert "'second'" in refused.json()["message"]
        assert second.get("/mode").json() == {"mode": "READONLY"}
        assert second.get("/health/ready").status_code == 503
        assert register(first, "shared", COMPATIBLE).status_code == 200
        wait_until(lambda: answers(second, "/subjects/shared/versions", [1, 2]))

        kill_registry(own, wait_until)
        wait_until(lambda: answers(second, "/mode", {"mode": "READWRITE"}))

        assert register(second, "shared", ONE).json() == {"id": schema_id}
        new = record({"name": "other", "type": "long"})
        assert register(second, "new", new).json()["id"] == schema_id + 2


def test_ids_and_levels_survive_a_restart(own):
    with httpx.Client(base_url=own.up().registry_url, timeout=30) as client:
        schema_id = register(client, "kept", ONE).json()["id"]
        client.put("/config/kept", json={"compatibility": "BACKWARD"})
    own.down()

    with httpx.Client(base_url=own.up().registry_url, timeout=30) as client:
        assert client.get("/subjects/kept/versions/1").json()["id"] == schema_id
        assert client.get("/config/kept").json() == {"compatibilityLevel": "BACKWARD"}


def test_a_writer_that_was_replaced_without_noticing_is_fenced_by_the_broker(own, wait_until):
    kafka = {"bootstrap.servers": own.up().bootstrap_servers}
    ours = next(one for one in own.status() if one.name == "registry")
    with httpx.Client(base_url=ours.address, timeout=30) as client:
        rival = Producer({**kafka, "transactional.id": "headrace.schema-registry"})
        rival.init_transactions(30)

        refused = register(client, "fenced", ONE)

        assert code(refused) == (422, 42205)
        assert client.get("/subjects/fenced/versions").status_code == 404
        assert client.get("/mode").json() == {"mode": "READONLY"}
    kill_registry(own, wait_until)


def test_a_write_after_kafka_was_killed_and_came_back_succeeds(own, wait_until):
    endpoints = own.up()
    (broker,) = (one for one in own.status() if one.name == "kafka")
    os.kill(broker.pid, signal.SIGKILL)
    wait_until(lambda: [one.state for one in own.status()] == ["stopped", "running"])
    assert own.up() == endpoints

    with httpx.Client(base_url=endpoints.registry_url, timeout=60) as client:
        wait_until(lambda: register(client, "after", ONE).status_code == 200)

        assert client.get("/subjects/after/versions").json() == [1]


def test_the_log_holds_confluents_records(stack, client, unique_name):
    register(client, unique_name, ONE)
    consumer = Consumer({"bootstrap.servers": stack.bootstrap_servers, "group.id": unique_name})
    consumer.assign([TopicPartition("_schemas", 0, 0)])
    found = None
    while found is None:
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        key = json.loads(message.key())
        if key.get("subject") == unique_name:
            found = key, json.loads(message.value())
    consumer.close()

    assert found[0] == {"keytype": "SCHEMA", "subject": unique_name, "version": 1, "magic": 1}
    assert json.loads(found[1]["schema"]) == json.loads(ONE)
