"""Receipts of a real worker, two entities, two models and a kill: explained and replayed."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from live import LiveWorker
from receipt_cases import as_json, fill_lake, make_fraud, read_all

from headrace.lake.receipts import choose_ids
from headrace.lake.tables import Lake, predictions_table, snapshots_table
from headrace.runtime import topics
from headrace.streams.environment import open_environment
from headrace.streams.receipts import replay_receipts

DAYS = 40
FIRST, COUNT = 3_000, 5_000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def served(stack, tmp_path_factory, repository, wait_until):
    """Return a project whose worker was killed, started again, and given another model."""
    folder = tmp_path_factory.mktemp("receipts") / "project"
    made = make_fraud(folder, repository / "examples" / "fraud", "receipts", stack, DAYS)
    plan = made.plan
    made.headrace("apply")
    first, second = made.add_model(1), made.add_model(2)
    made.headrace("deploy", first)
    made.headrace("send", "--reports", "first", "--max", str(COUNT))
    predictions = topics.predictions(plan.name)
    with LiveWorker(folder) as worker:
        wait_until(lambda: made.written(predictions) >= FIRST, 120)
        worker.kill()
    made.headrace("deploy", second)
    with LiveWorker(folder) as worker:
        wait_until(lambda: _events(made, predictions) >= COUNT, 120)
        assert worker.terminate() == 0, worker.output()
    fill_lake(made)
    return made


def _events(served, topic):
    """Return how many different events a topic's records are about."""
    values = [message.value() for message in read_all(served.client, topic)]
    # After the header the record starts with its id.
    return len({value[5 : 6 + value[5] // 2] for value in values})


@pytest.fixture
def other_lake(served, tmp_path):
    """Return a function that changes a table in a copy of the lake, and returns the copy."""
    folder = tmp_path / "lake"
    shutil.copytree(served.lake.folder, folder)

    def change(name, alter):
        path = str(folder / name)
        table = DeltaTable(path).to_pyarrow_table()
        write_deltalake(path, alter(table), mode="overwrite")
        return Lake(folder)

    return change


def replay(served, lake, ids, *, folder=None, locate=None):
    environment = open_environment(folder or served.folder)
    try:
        return replay_receipts(
            environment, environment.pipeline(None), lake, locate or served.locate, ids
        )
    finally:
        environment.registry.close()


def by_id(report):
    found = {}
    for one in report.replayed:
        found.setdefault(one.id, []).append(one)
    return found


def test_two_thousand_receipts_are_replayed_bit_for_bit(served):
    result = as_json(served.headrace("replay", "--sample", "2000", "--seed", "7", "--json"))

    emitted = served.lake.table(predictions_table(served.plan.name)).count_rows()
    assert result["equal"]
    assert emitted > COUNT, "rows came twice when the worker was killed"
    assert result["same"] == result["replayed"] >= 2_000
    assert result["vectors_from"] == {"log": result["replayed"]}
    assert result["other_engines"] == []


def test_a_flipped_bit_and_a_changed_score_are_told_and_nothing_else(served, other_lake):
    name = served.plan.name
    ids = choose_ids(served.lake, name, 200, seed=1)
    bad, worse = ids[17], ids[60]

    def flip(table):
        rows = table.to_pylist()
        for row in rows:
            if row["prediction_id"] == str(bad):
                mean = row["customer__amount_mean_7d"]
                row["customer__amount_mean_7d"] = float(np.nextafter(mean, np.inf))
        return pa.Table.from_pylist(rows, schema=table.schema)

    def lower(table):
        rows = table.to_pylist()
        for row in rows:
            if row["prediction_id"] == str(worse):
                row["score"] = float(np.nextafter(row["score"], 0.0))
        return pa.Table.from_pylist(rows, schema=table.schema)

    other_lake(snapshots_table(name), flip)
    report = replay(served, other_lake(predictions_table(name), lower), ids)

    assert not report.equal
    wrong = {one.id: one for one in report.replayed if not one.equal}
    assert set(wrong) == {bad, worse}
    (found,) = wrong[bad].differences
    assert found.what == "customer__amount_mean_7d"
    assert found.recorded == np.nextafter(found.recomputed, np.inf)
    assert [found.what for found in wrong[worse].differences] == ["score"]
    assert all(one.vector_from == "log" for one in report.replayed)


def test_another_model_under_the_recorded_version_is_told_by_its_hash(served):
    name = served.plan.name
    ids = choose_ids(served.lake, name, 20, seed=2)

    def swapped(model, version):
        return served.locate(model, "2" if version == "1" else "1")

    report = replay(served, served.lake, ids, locate=swapped)

    for one in report.replayed:
        assert not one.differences
        (fault,) = one.faults
        assert "it was replaced since" in fault
        assert one.vector_from == "log"


def test_changed_definitions_are_told_by_fingerprint_and_scores_are_replayed_all_the_same(
    served, tmp_path
):
    folder = tmp_path / "changed"
    shutil.copytree(served.folder, folder, ignore=shutil.ignore_patterns("draft-*", "data"))
    text = (folder / "definitions.py").read_text()
    (folder / "definitions.py").write_text(
        text.replace('delay="7d",\n    feat', 'delay="6d",\n    feat')
    )
    ids = choose_ids(served.lake, served.plan.name, 5, seed=3)

    report = replay(served, served.lake, ids, folder=folder)

    for one in report.replayed:
        assert not one.differences
        assert served.plan.fingerprint in one.faults[0]
        assert "definitions of then" in one.faults[0]
        assert one.vector_from is None


def test_a_topic_that_was_made_anew_is_replayed_from_the_lake_and_it_says_so(served, other_lake):
    plan = served.plan

    def elsewhere(name):
        def alter(table):
            index = table.schema.get_field_index(name)
            gone = pa.array(["gone"] * table.num_rows)
            return table.set_column(index, name, gone)

        return alter

    for table in (predictions_table(plan.name), snapshots_table(plan.name)):
        other_lake(table, elsewhere("source_topic_id"))
    lake = other_lake(plan.source, elsewhere("_topic_id"))
    ids = choose_ids(lake, plan.name, 300, seed=4)
    assert {one.topic_id for one in ids} == {"gone"}

    report = replay(served, lake, ids)

    assert {one.vector_from for one in report.replayed} == {"lake"}
    # Three partitions come to the second stage out of step: what lies a week back is not touched.
    assert report.equal


def test_what_the_lake_does_not_hold_is_told_with_how_far_it_has_come(served, other_lake):
    name = served.plan.name
    (known,) = choose_ids(served.lake, name, 1, seed=5)
    beyond = known._replace(offset=10**6)

    report = replay(served, served.lake, [known, beyond])
    unknown = served.headrace("explain", str(beyond), code=1)
    others = pc.field("prediction_id") != str(known)
    lake = other_lake(snapshots_table(name), lambda table: table.filter(others))
    half = served.headrace("explain", str(known), code=1, HEADRACE__LAKE__FOLDER=str(lake.folder))

    assert list(report.unknown) == [beyond]
    assert not report.equal
    assert "its prediction is not there, its snapshot is not there" in unknown.stderr
    assert "the lake has read all" in unknown.stderr
    assert "its prediction is there, its snapshot is not there" in half.stderr
    assert "its event is in" in half.stderr


def test_a_prediction_is_explained_from_its_event_to_its_score(served):
    result = as_json(served.headrace("explain", "--event", "4000", "--json"))
    page = served.headrace("explain", result["receipt"]["id"]).stdout

    receipt, parts = result["receipt"], result["contributions"]
    table = pq.read_table(served.folder / "data" / "transactions.parquet")
    sent = table.filter(pc.field("transaction_id") == 4000).to_pylist()[0]
    assert receipt["event_id"] == "4000"
    assert receipt["event"]["amount"] == sent["amount"] == receipt["vector"]["amount"]
    assert receipt["keys"] == {"customer": sent["customer_id"], "terminal": sent["terminal_id"]}
    assert receipt["arrival_time_ms"] <= receipt["predicted_at_ms"]
    assert (receipt["model_version"], receipt["revision"]) == ("2", 2)
    assert len(receipt["model_hash"]) == 16
    assert receipt["engine"].startswith("0.1.0+")
    assert parts["adds_up"]
    total = parts["base"] + sum(parts["by_column"].values())
    assert 1 / (1 + np.exp(-total)) == pytest.approx(receipt["score"], abs=1e-12)
    moved = [abs(line["contribution"]) for line in result["features"]]
    assert moved == sorted(moved, reverse=True)
    lines = {line["name"]: line for line in result["features"]}
    assert lines["customer__amount_mean_7d"]["definition"] == "mean of amount, last 7d"
    text = (served.folder / "definitions.py").read_text().splitlines()
    file, number = lines["customer__amount_mean_7d"]["line"].split(":")
    assert (file, text[int(number) - 1].strip()[:8]) == ("definitions.py", "hr.mean(")
    for said in (sent["customer_id"], "mean of amount, last 7d", "raw score", "headrace replay"):
        assert said in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("explain",), "name a prediction"),
        (("explain", "17"), "<source topic id>-<partition>-<offset>"),
        (("replay",), "--sample"),
        (("replay", "x-1-2", "--sample", "3"), "not both"),
        (("replay", "--sample", "3", "--from", "soon"), "no date"),
    ],
)
def test_wrong_use_is_told_with_the_right_one(served, arguments, said):
    done = served.headrace(*arguments, code=2)

    assert said in done.stderr
    assert "Traceback" not in done.stderr
