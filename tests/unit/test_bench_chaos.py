"""What chaos says of outputs: each kind of harm is found, and a row with any does not pass."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import struct
import types

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from stream_cases import make_payments, one_stage

from bench.chaos import report
from bench.chaos.reader import Seen
from bench.chaos.rows import Outcome, Row, Size, all_rows
from bench.chaos.rows_brokers import _inversions, _payment_id, pause_s
from bench.chaos.run import exit_code, run_rows
from bench.chaos.verdict import Outputs, compare, inversions, unlike
from headrace.runtime.dev.proxy import KafkaFaultProxy
from headrace.streams.testing import Driver

KEY = "customer_key"
FINE = Outcome(3, 0, 0, 0, 0, 1.5, met=True, note="all well")
CONDITIONS = report.Conditions("2026-01-02", "abc", 2, "4.0.0", 0.5, 7)


def row(number=1, **options):
    return Row(number, "a fault", "a figure", lambda _lab, _size: FINE, Size(), **options)


def result(outcome, number=1, known=None):
    size = Size(3, 1_000)
    return report.Result(number, "a fault", "a figure", outcome, size, 2.0, CONDITIONS, known)


@pytest.fixture(scope="module")
def table():
    driver = Driver(one_stage(), output_partitions=1)
    driver.send("payments", make_payments(60, seed=3))
    driver.run()
    return driver.snapshots()


@pytest.fixture(scope="module")
def order(table):
    return {event_id: place for place, event_id in enumerate(table.column("event_id").to_pylist())}


def judged(expected, found, order):
    outputs = Outputs.of(found, KEY)
    harm = compare(Outputs.of(expected, KEY), outputs)
    mixed = inversions(outputs, [0] * found.num_rows, order)
    return harm.lost, harm.duplicated, mixed, harm.wrong


def taken(table, places):
    return table.take(pa.array(places))


def places(table):
    return list(range(table.num_rows))


def of_one_key(table):
    """Return the places of two rows of one key, the first and the last that it has."""
    keys = table.column(KEY).to_pylist()
    mine = [place for place, key in enumerate(keys) if key == keys[0]]
    assert len(mine) > 1, keys
    return mine[0], mine[-1]


def test_the_same_outputs_are_without_harm(table, order):
    assert judged(table, table, order) == (0, 0, 0, 0)


def test_a_row_that_is_missing_is_lost(table, order):
    assert judged(table, taken(table, places(table)[1:]), order) == (1, 0, 0, 0)


def test_a_row_that_came_twice_is_duplicated(table, order):
    there = places(table)

    assert judged(table, taken(table, [there[0], *there]), order) == (0, 1, 0, 0)


def test_one_row_in_the_place_of_another_is_lost_and_duplicated(table, order):
    there = places(table)

    assert judged(table, taken(table, [there[1], *there[1:]]), order) == (1, 1, 0, 0)


def test_rows_of_one_key_that_changed_places_are_reordered(table, order):
    there = places(table)
    first, last = of_one_key(table)
    there[first], there[last] = there[last], there[first]

    lost, duplicated, mixed, wrong = judged(table, taken(table, there), order)

    assert (lost, duplicated, wrong) == (0, 0, 0)
    assert mixed >= 1


def test_rows_of_other_keys_and_partitions_have_no_order_between_them(table, order):
    outputs = Outputs.of(table, KEY)
    first, last = of_one_key(table)
    swapped = Outputs.of(taken(table, [last, first]), KEY)

    assert inversions(outputs, [0] * table.num_rows, order) == 0
    assert inversions(swapped, [0, 0], order) == 1
    assert inversions(swapped, [0, 1], order) == 0


@pytest.mark.parametrize("wrong", ["bit", "zero", "null", "text"])
def test_a_value_with_another_bit_is_wrong(table, order, wrong):
    names = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    name = "source" if wrong == "text" else names[0]
    values = table.column(name).to_pylist()
    place = next(i for i, value in enumerate(values) if value)
    values[place] = {
        "bit": lambda value: float(np.nextafter(value, np.inf)),
        "zero": lambda _: 0.0,
        "null": lambda _: None,
        "text": lambda value: f"{value}x",
    }[wrong](values[place])
    index = table.schema.get_field_index(name)
    column = pa.array(values, table.schema.field(name).type)
    spoilt = table.set_column(index, pa.field(name, column.type), column)

    assert judged(table, spoilt, order) == (0, 0, 0, 1)


def seen(*records):
    return [Seen(partition, offset, value, 0) for partition, offset, value in records]


@pytest.mark.parametrize(
    ("looked_on", "harm"),
    [
        ([(0, 0, b"a"), (1, 0, b"c"), (0, 1, b"b")], 0),
        ([(0, 0, b"a"), (0, 1, b"b")], 1),
        ([(0, 0, b"a"), (0, 1, b"b"), (0, 1, b"b"), (1, 0, b"c")], 1),
        ([(0, 0, b"a"), (0, 1, b"x"), (1, 0, b"c")], 2),
        ([(0, 1, b"b"), (0, 0, b"a"), (1, 0, b"c")], 1),
        ([(0, 0, b"a"), (0, 1, b"b"), (1, 0, b"c"), (1, 3, b"aborted")], 1),
    ],
)
def test_a_reader_who_looked_on_must_have_seen_what_is_there(looked_on, harm):
    there = seen((0, 0, b"a"), (0, 1, b"b"), (1, 0, b"c"))

    assert unlike(seen(*looked_on), there) == harm


@pytest.mark.parametrize("harm", ["lost", "duplicated", "reordered", "wrong"])
def test_a_row_with_any_harm_fails_the_run_even_if_its_figure_is_known_to_be_missed(harm):
    bad = result(dataclasses.replace(FINE, **{harm: 1}))

    assert exit_code({1: row()}, [result(FINE)], {}) == 0
    assert exit_code({1: row()}, [bad], {}) == 1
    assert exit_code({1: row(known="slow disk")}, [bad], {}) == 1


def test_a_missed_figure_fails_unless_it_is_known_and_a_row_without_a_result_fails():
    missed = result(dataclasses.replace(FINE, met=False))

    assert exit_code({1: row()}, [missed], {}) == 1
    assert exit_code({1: row(known="slow disk")}, [missed], {}) == 0
    assert exit_code({1: row(), 2: row(2)}, [result(FINE)], {2: "the broker was gone"}) == 1


def test_each_row_is_saved_when_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "bench.chaos.run.infrastructure", lambda *_: contextlib.nullcontext(object())
    )
    path, seen = tmp_path / "found.json", []

    def look(_lab, _size):
        seen.append(sorted(report.load(path)))
        return FINE

    rows = [dataclasses.replace(row(number), run=look) for number in (1, 2)]
    sizes = {"runs": None, "events": None, "seconds": None}
    options = types.SimpleNamespace(work=tmp_path, ci=False, **sizes)
    run_rows(options, rows, 7, path, Console(file=io.StringIO()))

    assert seen == [[], [1]]
    assert sorted(report.load(path)) == [1, 2]


def test_the_page_holds_measured_results_and_says_what_was_not_run(tmp_path):
    bad = result(dataclasses.replace(FINE, lost=4, reordered=None), number=2)
    report.save(tmp_path / "results.json", {1: result(FINE), 2: bad})
    loaded = report.load(tmp_path / "results.json")

    text = report.page([row(1), row(2), row(3)], loaded)

    assert loaded == {1: result(FINE), 2: bad}
    assert "| 1 | a fault | 3 | 0 | 0 | 0 | 0 | 1.5 | a figure | met (smaller run) |" in text
    assert "| 2 | a fault | 3 | 4 | 0 | – | 0 | 1.5 | a figure | NOT EXACT (smaller run) |" in text
    assert "| 3 | a fault | – | – | – | – | – | – | a figure | not run yet |" in text
    assert "2026-01-02, 2 cores (load 0.5), Kafka 4.0.0, commit `abc`, seed 7" in text


def test_the_page_in_the_docs_is_made_from_the_results_beside_the_rows():
    rows = list(all_rows().values())
    peers = report.load_peers(report.PEERS)

    assert report.PAGE.read_text(encoding="utf-8") == report.page(
        rows, report.load(report.RESULTS), peers
    )


def test_frames_are_taken_apart_however_they_arrive():
    frames = [struct.pack(">i", len(body)) + body for body in (b"one", b"", b"three")]
    stream, rest, found = b"".join(frames), b"", []
    for byte in stream:
        more, rest = KafkaFaultProxy._frames(rest + bytes([byte]))
        found += more

    assert found == frames
    assert rest == b""


def test_results_are_json_that_anyone_can_read(tmp_path):
    report.save(tmp_path / "results.json", {1: result(FINE)})

    (content,) = json.loads((tmp_path / "results.json").read_text())

    assert content["outcome"]["lost"] == 0
    assert content["conditions"]["kafka"] == "4.0.0"


@pytest.mark.parametrize("number", [0, 1, 63, 64, 111, 8_191, 8_192, 1 << 40])
def test_an_event_is_known_by_the_id_in_its_record(number):
    body = io.BytesIO()
    fastavro.schemaless_writer(body, "long", number)

    assert _payment_id(b"\0\0\0\0\1" + body.getvalue() + b"\xff more") == number


def test_events_that_the_source_holds_again_are_out_of_order_only_in_their_key():
    log = [(0, (n, 0, key, 1.0)) for n, key in ((1, "a"), (2, "b"), (3, "a"), (2, "b"), (1, "a"))]

    assert _inversions(log[:3]) == 0
    assert _inversions(log) == 1


def test_a_pause_is_that_of_the_partition_that_paused_longest():
    seen_s = [(0, 1.0), (0, 2.0), (0, 9.0), (1, 1.5), (1, 4.0), (1, 6.0), (1, 8.0)]
    records = [Seen(partition, 0, b"", 0, at_s) for partition, at_s in seen_s]
    reader = types.SimpleNamespace(records=lambda _name: records)
    scene = types.SimpleNamespace(reader=reader, project=types.SimpleNamespace(partitions=2))

    assert pause_s(scene, 1.0, 9.5) == 7.0
    assert pause_s(scene, 9.0, 9.5) == 0.5
