"""What the worker tells the online store: after the commit, complete, again after any loss."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow as pa
import pytest
from online_cases import OnlineDriver, RecordingStore
from stream_cases import DAY_MS, HOUR_MS, make_payments, make_reports, two_stages

from headrace.features.store.errors import StoreFullError
from headrace.streams.batch import Forget
from headrace.streams.online import ROUND_EVERY_MS, Erase

# In little more than an hour: no window changes by itself.
PAYMENTS = make_payments(400, seed=1, step_ms=20_000)
REPORTS = make_reports(PAYMENTS, seed=2)
# In more than a day.
LONG = make_payments(400, seed=3)
NEWEST_MS = PAYMENTS[-1]["event_time"]
# A terminal of which only reports speak.
UNSEEN = REPORTS[-1] | {"report_id": "r-unseen", "terminal_id": 99}


def driver_of(store=None, payments=PAYMENTS, reports=REPORTS, **options):
    driver = OnlineDriver(two_stages(), store, **options)
    send(driver, payments, reports)
    return driver


def send(driver, payments, reports=()):
    # As live traffic: the broker gets an event when it happens.
    arrival_ms = driver.clock.now_ms()
    driver.send("reports", reports, arrival_time_ms=arrival_ms)
    driver.send("payments", payments, arrival_time_ms=arrival_ms)


def test_the_store_holds_what_is_committed_and_nothing_that_is_not():
    driver = driver_of(reports=[*REPORTS, UNSEEN])
    driver.run()
    driver.look(3)
    assert driver.seen.wrote == 0

    driver.commit()
    driver.look(2)

    assert driver.faults() == []
    # Keys of which only other sources spoke have no values.
    assert any(99 in state.keys(0).to_pylist() for *_, state in driver.states())
    assert 99 not in driver.store.rows(driver.entities[1])
    assert all(marker.complete for marker in driver.markers())


def test_commits_that_come_fast_after_each_other_are_written_together():
    driver = driver_of(partitions=1, reports=())
    (owned,) = [one for one in driver.owned.values() if one.topic == "payments"]
    driver.step(owned, 40)
    driver.commit()
    driver.look(2)
    given, calls = len(driver.store.given), []
    driver.store.write = lambda *args: (
        calls.append(args) or RecordingStore.write(driver.store, *args)
    )

    for _ in range(100):
        driver.step(owned, 1)
        driver.commit()
        driver.writer.turn()
        driver.clock.advance(10)
    driver.clock.advance(ROUND_EVERY_MS)
    driver.writer.turn()

    # In 1.2 s.
    assert 2 <= len(calls) <= 8
    assert len(driver.store.given) - given <= 100
    assert driver.faults() == []


def test_the_marker_says_how_far_the_store_is():
    driver = driver_of(partitions=1)
    entity = driver.entities[0]
    driver.catch_up()

    (marker,) = driver.store.markers(entity).values()

    assert marker.version == len(PAYMENTS)
    assert marker.beat_ms == driver.clock.now_ms()
    assert marker.clock_ahead_ms + marker.beat_ms - 1_000 <= NEWEST_MS + 10_000


def test_values_decay_without_events_when_their_windows_change_and_only_then():
    driver = driver_of(payments=LONG, reports=make_reports(LONG, seed=4))
    driver.catch_up()
    customers = driver.entities[0]
    wrote = driver.seen.wrote

    driver.clock.advance(2 * HOUR_MS)
    driver.look()
    some = driver.seen.wrote - wrote
    assert some > 0
    assert driver.faults() == []
    driver.clock.advance(6 * DAY_MS)
    driver.look()
    assert driver.faults() == []
    values = [row.values for row in driver.store.rows(customers).values()]
    assert {one["customer__count_1d"] for one in values} == {0.0}
    wrote = driver.seen.wrote
    driver.clock.advance(30 * DAY_MS)
    driver.look(5)
    assert driver.seen.wrote == wrote


def test_a_partition_s_clock_is_its_newest_event_moved_on_by_the_wall_clock_since_it_came():
    driver = driver_of(partitions=1)
    entity = driver.entities[0]
    driver.clock.advance(3_600_000)
    driver.run()
    sent_ms = driver.clock.now_ms() - 3_600_000
    driver.look(5)
    last_look_ms = driver.clock.now_ms() - 1_000

    assert driver.clock_of(entity, 0) == NEWEST_MS + last_look_ms - sent_ms


def test_a_partition_far_behind_its_end_makes_no_ticks():
    driver = driver_of(payments=LONG, partitions=1)
    entity = driver.entities[0]
    (owned,) = [one for one in driver.owned.values() if one.topic == "payments"]
    driver.clock.advance(DAY_MS)
    driver.step(owned, 200)
    driver.commit()
    driver.look(2)
    wrote = driver.seen.wrote

    driver.clock.advance(10 * DAY_MS)
    driver.look(2)
    assert driver.seen.wrote == wrote
    assert driver.clock_of(entity, 0) == LONG[199]["event_time"]
    rows = driver.store.rows(entity).values()
    assert all(row.fence[2] == row.event_time_ms for row in rows)
    driver.catch_up()
    assert driver.clock_of(entity, 0) > LONG[-1]["event_time"] + 11 * DAY_MS
    assert driver.faults() == []


def test_a_worker_that_starts_again_writes_only_what_the_store_lacks():
    # Row by row: what of a batch is new is not told apart.
    driver = driver_of(batch_rows=1)
    driver.catch_up()
    driver.restart()
    driver.store.given.clear()
    driver.catch_up()
    # Of terminals some: their log goes on, as every start tells the next stage where it stands.
    assert "customer" not in {entity for entity, _ in driver.store.given}

    one = PAYMENTS[-1] | {"payment_id": 10_000, "event_time": NEWEST_MS + 1_000}
    send(driver, [one])
    driver.run()
    # Committed, but the worker ends before it is written.
    driver.commit()
    driver.restart()
    driver.catch_up()

    written = [key for entity, key in driver.store.given if entity == "customer"]
    assert written == [one["customer_id"]]
    assert driver.faults() == []


def test_a_store_that_is_away_gets_the_newest_values_when_it_is_back():
    driver = driver_of(payments=PAYMENTS[:200])
    driver.catch_up()
    driver.store.available = False
    for first in range(200, 400, 20):
        send(driver, PAYMENTS[first : first + 20])
        driver.run()
        driver.commit()
        driver.look()
    keys = 12 + 6
    pending = driver.seen.waits["customer"][0] + driver.seen.waits["terminal"][0]
    # The keys, and those that are on their way to the store.
    assert 0 < pending <= 2 * keys
    assert driver.seen.waits["customer"][1] >= 9
    # 0.1 s, twice as long each time, 5 s at most: not one failure a second.
    assert set(driver.seen.failed) == {"unavailable"}
    assert len(driver.seen.failed) < 10

    driver.store.available = True
    driver.look(7)
    assert driver.faults() == []
    assert driver.seen.waits["customer"][:2] == (0, 0.0)


def test_a_store_that_lost_everything_is_said_to_be_incomplete_until_it_is_filled_again():
    driver = driver_of()
    driver.catch_up()
    lineages = {marker.lineage for marker in driver.markers()}

    driver.store.flush()
    driver.writer.turn()
    driver.clock.advance(1_000)
    driver.writer.turn()
    # What comes meanwhile is written, which does not make it complete.
    send(driver, [PAYMENTS[-1] | {"payment_id": 10_000}])
    driver.run()
    driver.commit()
    for _ in range(3):
        driver.clock.advance(1_000)
        driver.writer.turn()
    assert driver.store.rows(driver.entities[0])
    assert not any(marker.complete for marker in driver.markers())

    driver.look(4)
    assert driver.faults() == []
    assert all(marker.complete for marker in driver.markers())
    assert {marker.lineage for marker in driver.markers()}.isdisjoint(lineages)


def test_a_store_that_came_back_older_gets_what_it_lost_and_no_more():
    driver = driver_of(payments=PAYMENTS[:380])
    driver.catch_up()
    saved = copy.deepcopy((driver.store._rows, driver.store._markers))
    send(driver, PAYMENTS[380:])
    driver.catch_up()
    changed = {row["customer_id"] for row in PAYMENTS[380:]} - {None}
    changed |= {row["terminal_id"] for row in PAYMENTS[380:]} - {None}

    driver.store._rows, driver.store._markers = saved
    driver.store.restart()
    driver.seen.wrote = 0
    for _ in range(3):
        driver.writer.turn()
        driver.clock.advance(1_000)
    assert not any(marker.complete for marker in driver.markers())
    driver.look(4)

    assert driver.faults() == []
    assert 0 < driver.seen.wrote <= len(changed)
    assert all(marker.complete for marker in driver.markers())


def test_a_log_that_was_cut_begins_a_lineage_as_its_offsets_come_again():
    driver = driver_of(partitions=1)
    driver.catch_up()
    lineage = driver.markers()[0].lineage
    # The same topic, as after an unclean loss: half of the events are gone, and others come.
    lost = OnlineDriver(two_stages(), driver.store, partitions=1)
    send(lost, PAYMENTS[:100])
    lost._start()

    lost.catch_up()

    assert lost.markers()[0].lineage > lineage
    held = lost.store.rows(lost.entities[0])
    seen = {row["customer_id"] for row in PAYMENTS[:100]} - {None}
    assert {key: held[key].values["customer__count_1d"] for key in seen} == {
        key: sum(row["customer_id"] == key for row in PAYMENTS[:100]) for key in seen
    }


def test_a_full_store_gets_the_rest_when_it_has_room():
    driver = driver_of(RecordingStore(room=5))
    driver.catch_up()
    assert "full" in driver.seen.failed
    assert len(driver.store._rows) == 5
    assert not all(marker.complete for marker in driver.markers())
    failures = len(driver.seen.failed)
    driver.look(10)
    # It is asked again, less and less often.
    assert failures < len(driver.seen.failed) <= failures + 6

    driver.store.room = None
    driver.look(7)
    assert driver.faults() == []
    assert all(marker.complete for marker in driver.markers())


class RefusingStore(RecordingStore):
    """Takes no rows while it is full, and answers everything else."""

    full = False

    def write(self, entity, partition, lineage, rows, clock_ms):
        if self.full:
            raise StoreFullError("the store must have room; got none", 0, len(rows))
        return super().write(entity, partition, lineage, rows, clock_ms)


def test_a_store_that_answers_but_takes_no_rows_is_said_to_be_as_old_as_what_waits():
    driver = driver_of(RefusingStore(), payments=PAYMENTS[:200], partitions=1)
    driver.catch_up()
    entity = driver.entities[0]
    driver.store.full = True
    since_ms = driver.clock.now_ms()
    for first in range(200, 400, 10):
        # The same few keys again and again: each has waited since it was first refused.
        send(driver, PAYMENTS[first : first + 10])
        driver.run()
        driver.commit()
        driver.look()
    (marker,) = driver.store.markers(entity).values()
    assert marker.complete
    assert since_ms <= marker.beat_ms <= since_ms + 1_000
    assert driver.seen.waits["customer"][1] >= 18

    driver.store.full = False
    driver.look(7)
    (marker,) = driver.store.markers(entity).values()
    assert driver.clock.now_ms() - marker.beat_ms <= 1_000
    assert driver.faults() == []


def test_a_rebuild_that_is_asked_for_writes_all_keys_and_reports_how_far_it_is():
    driver = driver_of()
    driver.catch_up()
    entity = driver.entities[0]
    driver.store._rows.clear()

    number = driver.store.request_rebuild(entity)
    driver.look(4)

    assert [fault for fault in driver.faults() if fault[1] in driver.store.rows(entity)] == []
    rows = driver.store.rows(entity)
    done = driver.store.rebuilds(entity)
    assert set(done) == {0, 1, 2, 3}
    assert {one.request for one in done.values()} == {number}
    assert all(one.done for one in done.values())
    assert sum(one.total for one in done.values()) == len(rows) == 12


@pytest.mark.parametrize("flush", [True, False])
def test_a_partition_that_goes_is_written_once_more_unless_it_was_lost(flush):
    driver = driver_of()
    driver.look(3)
    driver.run()
    driver.commit()

    driver.feed.released(list(driver.owned), flush=flush)
    driver.writer.turn()

    assert (driver.faults() == []) is flush
    wrote = driver.seen.wrote
    driver.look(3)
    assert driver.seen.wrote == wrote


def erase_of(driver, key, *, version):
    """Return a customer's erasure, what is served of their partition, and who was told of it."""
    entity = driver.entities[0]
    state = next(state for one, _, _, state in driver.states() if one is entity)
    slots = np.array([state.keys(0).to_pylist().index(key)])
    part = next(kept.served for kept in driver.feed._kept.values() if kept.served.entity is entity)
    told = []
    forget = Forget("payments", 0, 0, "r1", version, pa.array([key]), {})
    return part, Erase(forget, slots, lambda one, keys: told.append((one.request, keys))), told


def test_an_erased_key_leaves_the_store_and_is_not_written_again():
    driver = driver_of(partitions=1)
    driver.catch_up()
    driver.look(2)
    part, erase, told = erase_of(driver, "c3", version=len(PAYMENTS))
    assert "c3" in driver.store.rows(driver.entities[0])

    driver.writer.erase(part, erase)
    driver.look(2)

    assert driver.faults() == [("missing", "c3")]
    assert told == [("r1", 1)]


def test_what_waits_for_a_store_that_is_away_is_erased_before_anything_is_said_again():
    driver = driver_of(partitions=1)
    driver.look(2)
    driver.run()
    driver.commit()
    part, erase, told = erase_of(driver, "c3", version=len(PAYMENTS))

    driver.store.available = False
    driver.writer.erase(part, erase)
    driver.look(3)
    assert told == []
    driver.store.available = True
    driver.look(8)

    assert driver.faults() == [("missing", "c3")]
    assert told == [("r1", 1)]


def test_an_erasure_that_the_store_has_gone_beyond_deletes_nothing_newer():
    driver = driver_of(partitions=1)
    driver.catch_up()
    driver.look(2)
    part, erase, told = erase_of(driver, "c3", version=3)

    driver.writer.erase(part, erase)
    driver.look(2)

    assert "c3" in driver.store.rows(driver.entities[0])
    assert told == [("r1", 1)]


@pytest.mark.parametrize("seed", range(6))
def test_crashes_and_aborts_lose_nothing(seed):
    driver = driver_of(seed=seed, batch_rows=60)
    for _ in range(4):
        driver.look()
        driver.run(crash_odds=0.1, abort_odds=0.2)
    send(driver, [row | {"payment_id": row["payment_id"] + 1_000} for row in PAYMENTS[-30:]])
    driver.run(crash_odds=0.1, abort_odds=0.2)
    driver.catch_up()

    assert driver.crashes
    assert driver.aborts
    assert driver.faults() == []
