"""A broker that is away: what is asked again, what is told, and what is written down of it."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from prometheus_client import CollectorRegistry
from stream_cases import three_stages

from headrace.runtime.clock import SystemClock
from headrace.runtime.errors import KafkaUnavailableError
from headrace.streams import positions
from headrace.streams.commit import committed
from headrace.streams.erasure_feed import ErasureFeed, ErasureLog
from headrace.streams.errors import FencedError, UndoneError
from headrace.streams.partition_watch import PartitionWatch
from headrace.streams.positions import ATTEMPTS, NOT_YET_WAIT_S, own, patiently
from headrace.streams.telemetry import Telemetry
from headrace.streams.transaction import UNDONE_MAX, ExactlyOnce
from headrace.streams.troubles import REPEAT_S, TroubleLog

DOWN = KafkaError(KafkaError._TRANSPORT, "connection refused")
DENIED = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED, "not allowed")
OURS = "g.0"


# --- Positions ------------------------------------------------------------------------------------


class Consumer:
    """Knows one partition; each question is refused as often as it is told to."""

    def __init__(self, refusals=0, error=DOWN, offset=7):
        self.left, self.error, self.offset = refusals, error, offset
        self.notes = '{"topic_id": "id"}'

    def committed(self, partitions, timeout):
        del timeout
        self._refuse()
        return [
            TopicPartition(one.topic, one.partition, self.offset, self.notes) for one in partitions
        ]

    def get_watermark_offsets(self, partition, timeout=-1, cached=False):
        del partition, timeout, cached
        self._refuse()
        return 0, 20

    def consumer_group_metadata(self):
        return "member"

    def _refuse(self):
        if self.left:
            self.left -= 1
            raise KafkaException(self.error)


def owned_by(consumer):
    (found,) = own(consumer, [TopicPartition("t", 0)], {"t": "id"}, 1, "stop", {}, {"t": 1}, None)
    return found


def test_partitions_that_are_given_while_the_broker_is_away_are_begun_when_it_is_back():
    assert owned_by(Consumer(refusals=ATTEMPTS - 1)).emit_from == 7


def test_a_broker_that_stays_away_or_refuses_is_not_asked_for_ever():
    with pytest.raises(KafkaException):
        owned_by(Consumer(refusals=ATTEMPTS))
    denied = Consumer(refusals=1, error=DENIED)
    with pytest.raises(KafkaException):
        owned_by(denied)
    assert denied.left == 0


@pytest.mark.parametrize("code", [KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError._DESTROY_BROKER])
def test_a_broker_that_does_not_lead_yet_is_asked_a_second_later(code):
    leaderless = KafkaError(code)
    consumer, waits = Consumer(refusals=3, error=leaderless), []

    assert patiently(lambda: consumer.get_watermark_offsets("t"), waits.append) == (0, 20)

    assert waits == [NOT_YET_WAIT_S] * 3
    once = Consumer(refusals=1, error=leaderless)
    with pytest.raises(KafkaException):
        patiently(lambda: once.get_watermark_offsets("t"), waits.append, attempts=1)
    assert len(waits) == 3


def test_a_worker_asks_for_the_erasures_again_and_a_person_is_told_at_once():
    erasures = ErasureLog({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, "erasures")
    erasures.close()
    feed = ErasureFeed(three_stages(), erasures, {})

    # Nothing has been erased: at its end from the start.
    erasures._next_offset = 20
    erasures._consumer = Consumer(refusals=ATTEMPTS - 1)
    feed.assigned([])
    assert not erasures._consumer.left

    erasures._consumer = Consumer(refusals=1)
    with pytest.raises(KafkaUnavailableError):
        erasures.read_to_end()


def test_an_offset_that_the_broker_does_not_tell_is_not_taken_for_none():
    class Silent(Consumer):
        def committed(self, partitions, timeout):
            (found,) = super().committed(partitions, timeout)
            found.offset = -1001
            return [WithError(found)]

    class WithError:
        error = KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT)

        def __init__(self, found):
            self.topic, self.partition, self.offset = found.topic, found.partition, found.offset

    with pytest.raises(KafkaException):
        committed(Silent(), [TopicPartition("t", 0)], 1)


# --- A coordinator that has gone -----------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        self.now_s += 0.1
        return self.now_s


class Producer:
    """A transactional producer whose commit ends it, with the error that it is told."""

    def __init__(self, clients):
        self._clients = clients

    def init_transactions(self, _timeout):
        self._clients.inits += 1

    def begin_transaction(self):
        pass

    def send_offsets_to_transaction(self, *_):
        pass

    def commit_transaction(self, _timeout):
        if self._clients.error is not None:
            raise KafkaException(self._clients.error)

    def abort_transaction(self, _timeout):
        raise KafkaException(KafkaError(KafkaError._FATAL, "it cannot go on", fatal=True))

    def poll(self, _timeout):
        return 0

    def purge(self):
        pass


class Clients:
    """Makes such producers."""

    def __init__(self, error):
        self.error, self.inits = error, 0
        self.monotonic_s = Clock()

    def producer(self, _properties):
        return Producer(self)


class Watcher:
    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *_: self.told.append(name)


def guarantee(code, *, note):
    clients = Clients(KafkaError(code, "the end of it", fatal=True))
    consumer = Consumer()
    consumer.notes = note
    made = ExactlyOnce({}, 0.0, OURS, clients, consumer, Watcher())
    made.start()
    return made, clients


def commit(made):
    position = positions.Position("t", 0, 7, "id", version=3)
    return made.commit([position], 1.0, wait=True)


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.INVALID_TXN_STATE,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.DUPLICATE_SEQUENCE_NUMBER,
        KafkaError.UNKNOWN_PRODUCER_ID,
    ],
)
def test_a_commit_that_ends_the_client_and_is_no_fence_is_looked_up_by_a_new_producer(code):
    note = '{"topic_id": "id", "version": 3, "writer": "g.0"}'
    made, clients = guarantee(code, note=note)

    assert commit(made)
    assert clients.inits == 2

    made, clients = guarantee(code, note='{"topic_id": "id", "version": 2}')
    with pytest.raises(UndoneError):
        commit(made)
    assert clients.inits == 2
    # Nothing of it is left: what comes next begins anew.
    made.abort()
    clients.error = None
    assert commit(made)


def test_a_transaction_that_came_to_nothing_leaves_nothing_to_a_collection():
    """A worker hardly ever collects, and what hangs on an error may be a client."""
    made, clients = guarantee(KafkaError.INVALID_TXN_STATE, note='{"topic_id": "id"}')
    producers = weakref.WeakSet()
    make = clients.producer

    def producer(properties):
        client = make(properties)
        producers.add(client)
        return client

    clients.producer = producer
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with contextlib.suppress(UndoneError):
                commit(made)
        assert len(producers) == 1
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_so_many_transactions_in_a_row_that_come_to_nothing_end_the_worker():
    made, _ = guarantee(KafkaError.INVALID_TXN_STATE, note='{"topic_id": "id"}')

    for _ in range(UNDONE_MAX):
        with pytest.raises(UndoneError):
            commit(made)
    with pytest.raises(FencedError, match=f"{UNDONE_MAX} transactions in a row"):
        commit(made)


@pytest.mark.parametrize("code", [KafkaError.PRODUCER_FENCED, KafkaError._FENCED])
def test_a_fence_still_ends_the_worker(code):
    made, clients = guarantee(code, note='{"topic_id": "id"}')

    with pytest.raises(FencedError, match=OURS):
        commit(made)
    assert clients.inits == 1


# --- What is told ---------------------------------------------------------------------------------


def test_a_worker_is_ready_only_while_a_broker_answers_and_takes_outputs():
    said = []
    telemetry = Telemetry(CollectorRegistry(), "p", SystemClock(), said.append)
    assert not telemetry.is_ready
    telemetry.caught_up()
    assert telemetry.is_ready

    for tell in (telemetry.broker_answers, telemetry.delivers):
        tell(False)
        assert not telemetry.is_ready
        telemetry.caught_up()
        assert not telemetry.is_ready
        tell(True)
        assert telemetry.is_ready
    assert said == [0]


class Asked(PartitionWatch):
    """A watch whose broker answers as it is told."""

    def __init__(self, answers, told):
        super().__init__({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, {}, told, 0.0)
        self._script = answers

    def look(self):
        if not self._script:
            self._stop.set()
            return True
        return self._script.pop(0)


def test_whether_the_broker_answers_is_told_when_it_changes(wait_until):
    told = []
    watch = Asked([True, True, False, False, True, True, False, True], told.append)
    watch.start()
    wait_until(lambda: len(told) == 4)
    watch.stop()

    assert told == [False, True, False, True]


def test_a_broker_that_is_not_there_does_not_answer():
    from headrace.runtime.dev.processes import free_ports

    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    watch = PartitionWatch({"bootstrap.servers": nowhere, "log_level": 0}, {"t": 1})

    assert not watch.look()


def test_what_a_client_repeats_is_written_once_in_a_while(monkeypatch):
    written = []
    clock = Clock()
    monkeypatch.setattr(
        "headrace.streams.troubles.log",
        type("Log", (), {"warning": lambda _self, event, **more: written.append((event, more))})(),
    )
    trouble = TroubleLog("broker_trouble", lambda: clock.now_s)
    other = KafkaError(KafkaError._ALL_BROKERS_DOWN, "all down")

    for number in range(5):
        trouble(KafkaError(KafkaError._TRANSPORT, f"refused after {number} ms"))
    trouble(other)
    clock.now_s += REPEAT_S
    trouble(DOWN)

    assert [more["error"] for _, more in written] == [
        "refused after 0 ms",
        "all down",
        "connection refused",
    ]
    assert [more["untold"] for _, more in written] == [0, 0, 4]
