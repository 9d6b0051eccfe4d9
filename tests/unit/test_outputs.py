"""The schemas of what a pipeline writes, and how they may change."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from headrace.schemas.codec import RecordEncoder, SchemaDecoder
from headrace.schemas.compatibility import incompatibilities
from headrace.schemas.errors import SchemaRefused
from headrace.schemas.outputs import prediction_schema, snapshot_schema

IDS = {
    "prediction_id": "topic-0-17",
    "event_id": "17",
    "source": "transactions",
    "source_topic_id": "topic",
    "source_partition": 0,
    "source_offset": 17,
    "customer_key": "C1",
    "event_time": 1_700_000_000_000,
    "fingerprint": "0123456789abcdef",
}


def round_trip(schema: str, row: dict[str, object]) -> None:
    encoder = RecordEncoder(schema, 1)
    columns = {
        field.name: pa.array([row[field.name]], field.type) for field in encoder.arrow_schema
    }
    batch = pa.RecordBatch.from_pydict(columns, schema=encoder.arrow_schema)
    decoder = SchemaDecoder(schema)

    decoded = decoder.decode([value[5:] for value in encoder.encode(batch)])

    assert decoder.fast
    assert decoded.batch.equals(batch)


@pytest.mark.parametrize("score", [0.25, None])
def test_a_prediction_survives_the_wire(score: float | None) -> None:
    model = (
        {"model": "fraud", "model_version": "3", "model_hash": "0f" * 8, "engine": "0.1.0+ab"}
        if score
        else {"model": None, "model_version": None, "model_hash": None, "engine": None}
    )
    status = {"status": "ok" if score else "no_model", "role": "champion", "revision": 7}

    round_trip(prediction_schema("fraud", ["customer"]), IDS | model | status | {"score": score})


@pytest.mark.parametrize("value", [1.5, None])
def test_a_snapshot_survives_the_wire(value: float | None) -> None:
    vector = [("amount", "float64"), ("customer__count_1d", "int64")]
    schema = snapshot_schema("fraud", ["customer"], vector, ["customer"])
    count = None if value is None else 3

    round_trip(
        schema, IDS | {"amount": value, "customer__count_1d": count, "customer__age_ms": count}
    )


def test_any_two_plans_write_snapshots_that_read_each_other() -> None:
    plans = [
        snapshot_schema("fraud", ["customer"], [("amount", "float64")], []),
        snapshot_schema("fraud", ["customer", "terminal"], [("n", "int64")], ["customer"]),
        snapshot_schema("fraud", [], [("amount", "float64"), ("n", "int64")], ["terminal"]),
    ]

    for new in plans:
        assert incompatibilities(new, plans, "FULL_TRANSITIVE") == []
    entities = [prediction_schema("fraud", ["customer"]), prediction_schema("fraud", ["terminal"])]
    assert incompatibilities(entities[0], entities[1], "FULL_TRANSITIVE") == []


def test_a_feature_that_changes_its_type_needs_a_new_name() -> None:
    old = snapshot_schema("fraud", [], [("n", "float64")], [])
    new = snapshot_schema("fraud", [], [("n", "int64")], [])

    assert incompatibilities(new, old, "FULL_TRANSITIVE") != []


def test_a_pipeline_may_be_called_what_avro_does_not_allow() -> None:
    schema = json.loads(prediction_schema("2-fraud.eu", []))

    assert schema["namespace"] == "headrace._2_fraud_eu"


@pytest.mark.parametrize("name", ["event_time", "source", "not.a.name", "naïve", ""])
def test_names_that_avro_or_the_ids_do_not_allow_are_refused(name: str) -> None:
    with pytest.raises(SchemaRefused, match=r"fraud"):
        snapshot_schema("fraud", ["customer"], [(name, "float64")], [])
