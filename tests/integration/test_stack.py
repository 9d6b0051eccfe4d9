"""The embedded infrastructure: idempotent, durable, and safe against kills at any moment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from headrace.runtime import kafka
from headrace.runtime.dev import jars, java
from headrace.runtime.dev.kafka import Broker
from headrace.runtime.dev.processes import free_ports
from headrace.runtime.dev.stack import Stack, endpoints
from headrace.runtime.errors import EmbeddedError
from headrace.runtime.settings import load_settings
from headrace.runtime.topics import TopicSpec

KAFKA = ("kafka",)
TOPIC = TopicSpec("kept", "source", 1, 1, {"message.timestamp.type": "LogAppendTime"})


@pytest.fixture
def own(tmp_path):
    """Return a stack of Kafka alone, which goes down with the test."""
    stack = Stack(tmp_path / "state", services=KAFKA)
    yield stack
    stack.down()


def properties(bootstrap_servers):
    return {"bootstrap.servers": bootstrap_servers}


def write_one(bootstrap_servers):
    kafka.ensure_topics(kafka.admin(properties(bootstrap_servers)), [TOPIC])
    producer = Producer(properties(bootstrap_servers))
    producer.produce("kept", b"value")
    assert producer.flush(30) == 0


def read_one(bootstrap_servers):
    consumer = Consumer({**properties(bootstrap_servers), "group.id": "reader"})
    consumer.assign([TopicPartition("kept", 0, 0)])
    message = consumer.poll(30)
    consumer.close()
    return message.value()


def pid_of(stack):
    return stack.status()[0].pid


def test_what_was_written_is_there_after_a_stop_and_a_start_at_the_same_address(own):
    first = own.up()
    write_one(first.bootstrap_servers)

    assert own.down() == {"kafka": True}
    again = own.up()

    assert again == first
    assert read_one(again.bootstrap_servers) == b"value"


def test_a_second_up_leaves_what_runs_alone(own):
    first = own.up()
    pid = pid_of(own)

    assert own.up() == first
    assert pid_of(own) == pid


def test_what_was_written_survives_a_killed_broker(own, wait_until):
    write_one(own.up().bootstrap_servers)
    os.kill(pid_of(own), signal.SIGKILL)
    wait_until(lambda: own.status()[0].state == "stopped")

    assert read_one(own.up().bootstrap_servers) == b"value"


def test_a_taken_port_is_replaced_and_the_data_stays(own):
    write_one(own.up().bootstrap_servers)
    own.down()
    port = json.loads((own.folder / "stack.json").read_text())["ports"]["kafka"][0]

    with socket.create_server(("127.0.0.1", port)):
        moved = own.up()

        assert moved.bootstrap_servers != f"127.0.0.1:{port}"
        assert read_one(moved.bootstrap_servers) == b"value"


@pytest.mark.parametrize("begun", ["at_once", "with_files"])
def test_a_kill_while_formatting_leaves_a_folder_that_starts(own, wait_until, begun):
    broker = Broker(own.folder / "kafka", java.executable(), jars.fetch(None))
    unfinished = broker.folder / "data.formatting"
    with subprocess.Popen(
        [sys.executable, "-c", FORMAT, str(broker.folder)], start_new_session=True
    ) as formatting:
        if begun == "at_once":
            wait_until(unfinished.is_dir)
        else:
            wait_until(lambda: broker.data.exists() or any(unfinished.glob("*")))
        os.killpg(formatting.pid, signal.SIGKILL)
    if begun == "at_once":
        assert not broker.data.exists()

    write_one(own.up().bootstrap_servers)

    assert not unfinished.exists()


FORMAT = """
import pathlib, sys
from headrace.runtime.dev import jars, java
from headrace.runtime.dev.kafka import Broker
Broker(pathlib.Path(sys.argv[1]), java.executable(), jars.fetch(None)).format()
"""


def test_a_half_written_format_of_an_earlier_kill_is_thrown_away(own):
    unfinished = own.folder / "kafka" / "data.formatting"
    unfinished.mkdir(parents=True)
    (unfinished / "meta.properties").write_text("version=")

    write_one(own.up().bootstrap_servers)


def test_a_log_folder_with_data_is_never_wiped_even_if_it_cannot_be_used(own):
    write_one(own.up().bootstrap_servers)
    own.down()
    data = own.folder / "kafka" / "data"
    (data / "meta.properties").unlink()
    before = sorted(path.name for path in data.iterdir())

    with pytest.raises(EmbeddedError, match=r"must hold meta\.properties"):
        own.up()

    assert sorted(path.name for path in data.iterdir()) == before


def test_a_broker_that_cannot_start_is_reported_with_its_log_and_leaves_nothing_running(own):
    own.up()
    own.down()
    (own.folder / "kafka" / "data" / "meta.properties").write_text("version=1\nnode.id=7\n")

    with pytest.raises(EmbeddedError, match="Kafka must keep running"):
        own.up()

    assert own.status()[0].state == "stopped"


def test_a_process_that_got_the_recorded_id_later_is_not_killed(own):
    own.up()
    own.down()
    state_file = own.folder / "stack.json"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        state = json.loads(state_file.read_text())
        state["processes"] = {"kafka": {"pid": stranger.pid, "birth": "boot/1"}}
        state_file.write_text(json.dumps(state))

        assert own.status()[0].state == "stopped"
        assert own.down() == {}
        assert stranger.poll() is None
        stranger.kill()


def test_services_outlive_the_process_that_started_them(own):
    code = (
        "import pathlib, sys\n"
        "from headrace.runtime.dev.stack import Stack\n"
        "print(Stack(pathlib.Path(sys.argv[1]), services=('kafka',)).up().bootstrap_servers)\n"
    )
    command = [sys.executable, "-c", code, str(own.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    write_one(done.stdout.strip())
    assert own.endpoints().bootstrap_servers == done.stdout.strip()


def test_a_borrower_that_is_killed_leaves_nothing_running(tmp_path, wait_until):
    stack = Stack(tmp_path, services=("redis",))
    code = (
        "import os, pathlib, signal, sys\n"
        "from headrace.runtime.dev.stack import Stack\n"
        "with Stack(pathlib.Path(sys.argv[1]), services=('redis',)):\n"
        "    print('up', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("up\n", -signal.SIGKILL)
    wait_until(lambda: stack.status()[0].state == "stopped")


def test_redis_keeps_its_values_over_a_stop(tmp_path):
    stack = Stack(tmp_path, services=("redis",))
    with stack as first:
        command(first.redis_url, b"SET key value\r\n")
    with stack as again:
        assert command(again.redis_url, b"GET key\r\n") == b"$5\r\nvalue\r\n"


def command(url, text):
    host, port = url.removeprefix("redis://").split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(text)
        return connection.recv(1024)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "headrace.yaml").write_text("project: fraud\n")
    return tmp_path


def headrace(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "headrace.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_stack_the_endpoints_say_which_command_starts_one(project):
    with pytest.raises(EmbeddedError, match="run 'headrace up'"):
        endpoints(load_settings(project), project)


def test_an_impossible_download_is_one_line_with_what_to_do_and_leaves_nothing_running(project):
    (port,) = free_ports(1)
    done = headrace(
        project,
        "up",
        HEADRACE_CACHE=str(project / "cache"),
        HEADRACE__EMBEDDED__MAVEN_MIRROR=f"http://127.0.0.1:{port}/maven",
    )

    assert done.returncode == EmbeddedError.exit_code
    assert "set embedded.maven_mirror" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0
    status = json.loads(headrace(project, "status", "--json").stdout)
    assert {one["state"] for one in status["services"]} == {"stopped"}


def test_up_status_and_down_from_the_command_line(project):
    up = headrace(project, "up", "--json")
    try:
        running = headrace(project, "status", "--json")
        assert running.returncode == 0
        services = json.loads(running.stdout)["services"]
        found = json.loads(up.stdout)
        assert [one["name"] for one in services] == ["kafka", "redis", "registry", "lake"]
        assert [one["state"] for one in services] == ["running"] * 4
        assert [one["address"] for one in services[:3]] == list(found.values())
    finally:
        down = headrace(project, "down", "--json")

    stopped = {one["service"]: one["clean"] for one in json.loads(down.stdout)["stopped"]}
    assert stopped == {"lake": True, "registry": True, "redis": True, "kafka": True}
    assert headrace(project, "status").returncode == 4


def test_what_was_fetched_ahead_of_time_needs_no_network_any_more(project):
    jars.fetch(None)
    (port,) = free_ports(1)

    done = headrace(project, "fetch", "--mirror", f"http://127.0.0.1:{port}/maven")

    assert done.returncode == 0
    assert done.stdout.startswith(f"{len(jars.pinned())} files")
