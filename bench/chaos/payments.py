"""Payments for rows whose fault is in the events: how they are drawn, sent, and judged."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.chaos.plain import DAY_MS, Feature, expected, judge_plain
from bench.chaos.scene import START_MS, Scene
from bench.chaos.verdict import Verdict, judge, without_faults
from bench.live import DEFINITIONS
from bench.measure import read_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confluent_kafka import Message

    from bench.chaos import plain
    from bench.live import LiveProject, LiveWorker

CUSTOMERS = 50
#: Of event time between two events: ten thousand are 14 hours.
STEP_MS = 5_000
WAIT_S = 120.0
AMOUNTS = 'hr.mean("amount", over=["1h", "1d"])'
SPENDING = DEFINITIONS.replace(AMOUNTS, f'{AMOUNTS}, hr.sum("amount", over="1h")')
FEATURES = (
    Feature("customer__count_1h", "count"),
    Feature("customer__count_1d", "count", window_ms=DAY_MS),
    Feature("customer__amount_sum_1h", "sum", column="amount"),
    Feature("customer__amount_mean_1h", "mean", column="amount"),
    Feature("customer__amount_mean_1d", "mean", column="amount", window_ms=DAY_MS),
)


class Sent(NamedTuple):
    """A message for the source; ``row`` is None if it must not count, ``fate`` says why."""

    key: bytes | None
    value: bytes
    row: plain.Row | None
    fate: str = ""


def draw_payments(seed: int, count: int, first: int = 0) -> list[plain.Row]:
    """Draw payments in the order of event time; an event's id is its place."""
    draw = np.random.default_rng([seed, first])
    customers = draw.integers(0, CUSTOMERS, count)
    amounts = np.round(draw.gamma(2.0, 20.0, count) + 0.01, 2)
    return [
        {
            "payment_id": first + i,
            "event_time": START_MS + STEP_MS * (first + i),
            "customer_id": f"c{customers[i]}",
            "amount": float(amounts[i]),
        }
        for i in range(count)
    ]


def message(project: LiveProject, row: plain.Row, fate: str = "", *, counts: bool = True) -> Sent:
    """Return a payment as its producer sends it."""
    key = row["customer_id"]
    value = project.payment(*row.values())
    return Sent(None if key is None else str(key).encode(), value, row if counts else None, fate)


Records = Counter[tuple[str, bytes | None, bytes]]


def of_fate(sent: Sequence[Sent], *fates: str) -> Records:
    """Return what must stand in the DLQ or late topic: reason, key and value as they came."""
    return Counter((one.fate, one.key, one.value) for one in sent if one.fate in fates)


def counting(sent: Sequence[Sent]) -> list[plain.Row]:
    """Return the rows that count, in the order of sending."""
    return [one.row for one in sent if one.row is not None]


def play(scene: Scene, sent: Sequence[Sent]) -> LiveWorker:
    """Send messages while workers read, one of which is killed; return the last one.

    It waits until every event that counts has a prediction.
    """
    half = len(sent) // 2
    worker = scene.started()
    seen = scene.reader.count()
    scene.project.send([one[:2] for one in sent[:half]])
    scene.one_more(seen)
    worker.kill()
    worker = scene.start()
    scene.project.send([one[:2] for one in sent[half:]])
    worker.wait_ready()
    wait_predicted(scene, len(counting(sent)))
    return worker


def wait_predicted(scene: Scene, count: int) -> None:
    """Wait until so many predictions are committed; what does not come in time is lost."""
    scene.reader.wait(lambda: scene.reader.count() >= count, WAIT_S)


def refused(project: LiveProject, name: str) -> Records:
    """Return what stands in the DLQ or late topic: reason, key and value as they came."""
    found = read_topic(project.bootstrap_servers, project.topic(name), project.partitions)
    return Counter((_reason(one), one.key(), one.value() or b"") for one in found)


def _reason(one: Message) -> str:
    value = dict(one.headers() or [])["headrace.errors.reason"]
    assert isinstance(value, bytes)
    return value.decode()


def judged(
    scene: Scene,
    sent: Sequence[Sent],
    features: Sequence[Feature] = FEATURES,
    read: Callable[[plain.Row], plain.Row] = dict,
) -> Verdict:
    """Compare the outputs with those of two runs over what was sent, without what must not count.

    One is Headrace's own in memory: every column counts. The other knows nothing of it and says
    what the features are, of rows as ``read`` leaves them.
    """
    project, rows = scene.project, counting(sent)
    ids = Counter(str(row["payment_id"]) for row in rows)
    places = enumerate(str(row["payment_id"]) for row in rows)
    order = {event_id: place for place, event_id in places if ids[event_id] == 1}
    oracle = without_faults(project, [(project.place(one.key), one.row) for one in sent])
    own = judge(project, oracle, order, scene.reader)
    other = judge_plain(project, expected([*map(read, rows)], features), features, scene.reader)
    # Both see what is lost; it counts once.
    return Verdict(own.events, own.lost, own.duplicated, own.reordered, own.wrong + other.wrong)


def kept_verdict(
    project: LiveProject, sent: Sequence[Sent], reasons: Sequence[str]
) -> tuple[Verdict, str]:
    """Compare the DLQ and the late topic with what must be there; what differs, in words.

    Args:
        project: Whose topics.
        sent: All that was sent.
        reasons: Of the DLQ, those that were asked for.

    """
    dlq, said = differing(of_fate(sent, *reasons), refused(project, "dlq"))
    late, more = differing(of_fate(sent, "late"), refused(project, "late"))
    return Verdict(0, 0, 0, 0, dlq + late), "".join(f"; {one}" for one in (said, more) if one)


def differing(wanted: Records, found: Records) -> tuple[int, str]:
    """Return how many records are missing or too many, and a word on the first of each."""
    missing, extra = wanted - found, found - wanted
    words = []
    if missing:
        words.append(f"{missing.total()} missing, as {next(iter(missing))[0]}")
    if extra:
        words.append(f"{extra.total()} too many, as {next(iter(extra))[0]}")
    return missing.total() + extra.total(), "; ".join(words)


def key_of_each_partition(project: LiveProject) -> list[str]:
    """Return a customer of each partition, in their order."""
    found: dict[int, str] = {}
    for number in range(CUSTOMERS):
        found.setdefault(project.place(f"c{number}".encode()), f"c{number}")
    assert len(found) == project.partitions, found
    return [found[partition] for partition in range(project.partitions)]
