"""Feast's historical read against ``hr.history``, on real transactions.

Equal, bit for bit, at the times of events. Between them Feast repeats the last row until its ttl
has passed: how often that differs is measured here and stands in docs/time-and-parity.md.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.time_gap import (
    ASKED,
    DAY_MS,
    SEED,
    ask_feast,
    ask_history,
    differing,
    markdown,
    prepare,
    random_spine,
)
from headrace.features.feast_repo.objects import repo_objects
from headrace.features.feast_repo.repository import repository_of
from headrace.features.feast_repo.tables import table_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPINE = ["customer_id", "terminal_id", "event_time"]
NONE = dict.fromkeys(
    [
        *(f"customer__{what}_{d}d" for what in ("count", "amount_mean") for d in (1, 7, 30)),
        *(f"terminal__{what}_{d}d" for what in ("count", "risk") for d in (1, 7, 30)),
    ],
    0,
)


@pytest.fixture(scope="module")
def handbook(shared_data, tmp_path_factory):
    """The first 400,000 transactions, backfilled, and applied to Feast."""
    return prepare(tmp_path_factory.mktemp("handbook"), shared_data / "fraud")


@pytest.fixture(scope="module")
def ties(handbook):
    """Which transactions share the second with another one of their customer or terminal."""
    frame = handbook.transactions.select(SPINE).to_pandas()
    return (
        frame.duplicated(["customer_id", "event_time"], keep=False)
        | frame.duplicated(["terminal_id", "event_time"], keep=False)
    ).to_numpy()


@pytest.fixture(scope="module")
def between(handbook):
    """Random keys and times, and what the two say of them."""
    spine = random_spine(handbook)
    return spine, ask_history(handbook, spine), ask_feast(handbook, spine)


def test_at_events_feast_gives_what_history_gives_bit_for_bit(handbook, ties):
    chosen = np.random.default_rng(SEED).choice(np.flatnonzero(~ties), 5_000, replace=False)
    spine = handbook.transactions.select(SPINE).take(pa.array(np.sort(chosen)))

    ours, theirs = ask_history(handbook, spine), ask_feast(handbook, spine)

    assert differing(ours, theirs) == NONE
    # Not equal by being empty: both entities are asked when their windows are full.
    assert ours["terminal__count_30d"].to_numpy().max() > 10
    assert ours["terminal__risk_30d"].to_numpy().max() > 0
    assert theirs["customer__count_30d"].null_count == 0


def test_of_events_of_one_second_feast_takes_the_last(handbook, ties):
    spine = handbook.transactions.select(SPINE).filter(pa.array(ties))
    assert spine.num_rows > 10

    assert differing(ask_history(handbook, spine), ask_feast(handbook, spine)) == NONE


def test_a_millisecond_before_the_event_it_is_not_in(handbook, ties):
    chosen = np.random.default_rng(SEED).choice(np.flatnonzero(~ties), 500, replace=False)
    spine = handbook.transactions.select(SPINE).take(pa.array(np.sort(chosen)))
    earlier = pa.array(
        spine["event_time"].cast(pa.int64()).to_numpy() - 1, pa.timestamp("ms", "UTC")
    )
    before = spine.set_column(2, "event_time", earlier)

    # The comparison sees such a shift nearly everywhere.
    assert (
        differing(ask_feast(handbook, spine), ask_feast(handbook, before))["customer__count_30d"]
        > 400
    )


def test_between_events_feast_repeats_the_last_row_until_its_ttl(handbook, between):
    spine, _, theirs = between
    project = handbook.project
    offline = repository_of(project.settings).offline
    for view in repo_objects(project).views:
        rows = pq.read_table(table_folder(offline, view)).to_pandas()
        asked = spine.to_pandas()
        asked["event_time"] = asked["event_time"].astype("datetime64[us, UTC]")
        asked["row"] = np.arange(len(asked))
        rule = pd.merge_asof(
            asked.sort_values("event_time"),
            rows.sort_values(["event_timestamp", "created_timestamp"]),
            left_on="event_time",
            right_on="event_timestamp",
            by=view.entity.join_key,
            tolerance=pd.Timedelta(view.ttl_ms, "ms"),
        ).sort_values("row")
        for field in view.fields:
            found = theirs[f"{view.name}__{field.name}"].to_pandas()
            np.testing.assert_array_equal(
                found.to_numpy(float), rule[field.name].to_numpy(float), str(field)
            )


def test_the_gap_is_what_the_page_says(between, repository):
    _, ours, theirs = between
    found = differing(ours, theirs)

    page = (repository / "docs" / "time-and-parity.md").read_text(encoding="utf-8")
    assert markdown(found, ASKED) in page
    # An answer that lets windows go on is there for every key and time.
    assert ours["customer__count_1d"].null_count == 0
    assert re.search(r"400,000 transactions", page)


def test_a_bit_that_differs_and_a_null_are_seen():
    ours = pa.table({"a__x": pa.array([1.0, None, 0.1])})
    theirs = pa.table({"a__x": pa.array([np.nextafter(1.0, 2), 0.0, 0.1])})

    assert differing(ours, theirs) == {"a__x": 2}
    assert differing(ours, ours) == {"a__x": 0}
    assert DAY_MS == 24 * 3_600_000
