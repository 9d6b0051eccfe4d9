"""Our bytes are Feast's: keys of every Avro type that can be one, field names, values, times."""

from __future__ import annotations

import io
import json
import random
import uuid
from datetime import UTC, datetime, timedelta

import fastavro
import mmh3
import numpy as np
import pyarrow as pa
import pytest
import store_cases as cases

import headrace as hr
from headrace.features.compiler import compile_pipeline
from headrace.features.plan import ProjectPlan
from headrace.features.store.layout import KeyLayout, key_values, read_time_ms, read_value
from headrace.features.store.murmur3 import field_name, murmur3
from headrace.features.store.packing import WritePacker
from headrace.features.store.views import online_entities
from headrace.schemas.codec import SchemaDecoder

AVRO_KEYS = {
    "int": ("int", [0, 1, -1, 2**31 - 1, -(2**31)], "int64_val"),
    "long": ("long", [0, 7, -7, 2**63 - 1, -(2**63)], "int64_val"),
    "string": ("string", ["", "C0001", "naïve ☂ key", "x" * 3_000], "string_val"),
    "bytes": ("bytes", [b"", b"\x00\r\n$\xff", b"y" * 3_000], "bytes_val"),
    "enum": (
        {"type": "enum", "name": "Kind", "symbols": ["RED", "BLUE"]},
        ["RED", "BLUE"],
        "string_val",
    ),
    "fixed": ({"type": "fixed", "name": "Four", "size": 4}, [b"\x00\x01\x02\x03"], "bytes_val"),
    "uuid": (
        {"type": "string", "logicalType": "uuid"},
        [str(uuid.UUID(int=7))],
        "string_val",
    ),
    "nullable": (["null", "long"], [5, -5], "int64_val"),
}


@pytest.fixture(scope="module")
def protos():
    """Return Feast's own encoder and messages."""
    from feast.infra.online_stores.helpers import _redis_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.timestamp_pb2 import Timestamp

    return _redis_key, EntityKey, Value, Timestamp


def served(avro):
    """Return the entity that definitions over a schema with such a key serve."""
    fields = [
        {"name": "customer_id", "type": avro},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ]
    schema = {"type": "record", "name": "Payment", "fields": fields}
    payments = hr.Source("payments", key="customer_id", event_time="at", schema=schema)
    customer = hr.Entity("customer", key="customer_id")
    spending = hr.FeatureView("spending", customer, payments, [hr.count(over="1d")])
    plan = compile_pipeline(hr.Pipeline("fraud", payments, [spending]), project="shop_ü")
    entity = online_entities(ProjectPlan("shop_ü", (plan,)))["fraud"][0]
    return entity, json.dumps(schema)


@pytest.mark.parametrize("name", AVRO_KEYS)
def test_keys_are_feasts_for_every_avro_type_that_can_be_one(name, protos):
    redis_key, entity_key, value, _ = protos
    avro, keys, member = AVRO_KEYS[name]
    entity, schema = served(avro)
    layout = KeyLayout.of(entity)
    column = decoded(schema, keys)

    ours = [layout.key(data) for data in key_values(entity.key_kind, column)]

    feasts = [
        redis_key(
            "shop_ü", entity_key(join_keys=["customer_id"], entity_values=[value(**{member: key})])
        )
        for key in keys
    ]
    assert feasts == ours
    packer = WritePacker(entity, "0" * 40)
    rows = cases.EntityRows(
        column, np.ones((len(keys), 1)), *(np.ones(len(keys), np.int64) for _ in range(3))
    )
    data, _ = packer.pack(0, 1, rows, 0)
    assert set(feasts) == set(cases.unpacked(data))


def decoded(schema, keys):
    """Return the key column as it comes out of Avro messages."""
    parsed = fastavro.parse_schema(json.loads(schema))
    messages = []
    for key in keys:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, {"customer_id": key, "at": 0})
        messages.append(out.getvalue())
    return SchemaDecoder(schema).decode(messages).batch.column("customer_id")


def test_field_names_are_feasts():
    seeded = random.Random(7)
    for length in range(60):
        text = "".join(seeded.choices("abc_:xyz0äß", k=length))

        assert mmh3.hash(text, signed=False) == murmur3(text.encode())

    from feast.infra.online_stores.helpers import _mmh3

    assert _mmh3("spending:count_1d") == field_name("spending", "count_1d")


def test_values_and_times_are_feasts_messages(protos):
    _, _, value, timestamp = protos
    numbers = [0.0, 1.0, -1.0, 127.0, 128.0, 2.0**53, -(2.0**53), np.nan]
    doubles = [0.0, -0.0, 0.1, -1e300, np.inf, -np.inf, 5e-324, np.nan]
    times = [0, 1, 999, 1_000, -1, -1_000, cases.NOW_MS, cases.NOW_MS + 123]
    keys = list(range(len(times)))
    rows = cases.rows(keys, np.column_stack([numbers, doubles]), times)
    entity = cases.entity()

    packed = cases.unpacked(WritePacker(entity, "0" * 40).pack(3, 9, rows, cases.NOW_MS)[0])

    layout = KeyLayout.of(entity)
    for key, data in enumerate(key_values(entity.key_kind, rows.keys)):
        _, fence, fields = packed[layout.key(data)]
        number, double = numbers[key], doubles[key]
        moment = timestamp()
        moment.FromDatetime(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=times[key]))
        assert moment.SerializeToString() == fields[b"_ts:spending"]
        whole = value() if np.isnan(number) else value(int64_val=int(number))
        assert whole.SerializeToString() == fields[field_name("spending", "count_1d")]
        broken = value() if np.isnan(double) else value(double_val=double)
        mean = fields[field_name("spending", "amount_mean_1d")]
        assert broken.SerializeToString() == mean
        assert fence == b"%015d:%019d:%019d:%05d" % (9, 1, max(0, times[key]), 3)
        assert read_time_ms(fields[b"_ts:spending"]) == times[key]
        back = read_value(mean)
        assert (
            back is None
            if np.isnan(double)
            else np.float64(back).tobytes() == np.float64(double).tobytes()
        )


def test_a_null_key_is_a_programmers_error():
    with pytest.raises(AssertionError, match="not null"):
        key_values("int64", pa.array([1, None]))
