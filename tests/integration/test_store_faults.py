"""What the store says when its Redis is restarted, emptied, full or silent. Servers of its own."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import store_cases as cases

from headrace.features.store.connection import RedisConnection
from headrace.features.store.errors import StoreFullError, StoreUnavailableError
from headrace.features.store.layout import Fence, fence_field, time_field
from headrace.features.store.redis_store import RedisOnlineStore
from headrace.features.store.resp import command
from headrace.runtime.dev.processes import free_ports, stop
from headrace.runtime.dev.redis import RedisServer

ENTITY = cases.entity()


class Server:
    """A redis-server that can be ended, killed and started again at the same address."""

    def __init__(self, folder):
        self._server = RedisServer(folder)
        self._port = free_ports(1)[0]
        self.url = f"redis://127.0.0.1:{self._port}"
        self.record = None
        self.start()

    def start(self):
        self.record = self._server.start(self._port)
        self._server.wait_ready(self.record, self._port)

    def end(self):
        stop(self.record, 10.0)

    def kill(self):
        os.kill(self.record.pid, signal.SIGKILL)
        stop(self.record, 10.0)


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "redis")
    yield made
    os.kill(made.record.pid, signal.SIGCONT)
    made.end()


@pytest.fixture
def store(server):
    made = RedisOnlineStore(server.url)
    yield made
    made.close()


@pytest.fixture
def redis(server):
    connection = RedisConnection(server.url)

    def one(*arguments):
        (reply,) = connection.run([command(arguments)], 1)
        return reply

    yield one
    connection.close()


def rows(first, count, version=1):
    return cases.rows(np.arange(first, first + count), np.ones((count, 2)), version=version)


def test_an_emptied_store_is_noticed_and_its_new_lineage_is_above_the_old(store, redis):
    marker = store.open(ENTITY, 0, "plan", 5_000)
    assert store.beat(ENTITY, 0, marker) == marker

    redis(b"FLUSHALL")
    # Its writer has not noticed, and goes on; then another one takes the partition.
    store.write(ENTITY, 0, marker.lineage, rows(0, 10, version=99), cases.NOW_MS)

    assert store.beat(ENTITY, 0, marker) is None
    again = store.open(ENTITY, 0, "plan", 6_000)
    assert (again.version, again.complete) == (0, False)
    assert store.write(ENTITY, 0, again.lineage, rows(0, 10), cases.NOW_MS) == 10


def test_a_restart_is_noticed_and_the_marker_says_what_survived(store, server):
    opened = store.open(ENTITY, 0, "plan", 5_000)
    before = dataclasses.replace(opened, version=10, complete=True)
    assert store.beat(ENTITY, 0, before) == before

    server.end()
    with pytest.raises(StoreUnavailableError, match="Redis must answer"):
        store.write(ENTITY, 0, opened.lineage, rows(0, 10), cases.NOW_MS)
    server.start()

    later = dataclasses.replace(before, version=20)
    assert store.beat(ENTITY, 0, later) is None
    again = store.open(ENTITY, 0, "plan", 6_000)
    assert (again.lineage, again.version, again.complete) == (opened.lineage, 10, True)
    assert store.beat(ENTITY, 0, dataclasses.replace(again, version=20)).version == 20
    # The new server does not know the script yet.
    assert store.write(ENTITY, 0, again.lineage, rows(0, 300), cases.NOW_MS) == 300


def test_a_server_that_lost_everything_in_a_crash_is_noticed(store, server):
    marker = store.open(ENTITY, 0, "plan", 5_000)

    server.kill()
    server.start()

    assert store.beat(ENTITY, 0, marker) is None
    assert store.open(ENTITY, 0, "plan", 6_000).lineage > marker.lineage


def test_at_the_memory_limit_no_entity_is_half_written_and_later_all_are(store, redis):
    store.open(ENTITY, 0, "plan", 5_000)
    used = int(redis(b"INFO", b"memory").split(b"used_memory:")[1].split(b"\r\n")[0])
    redis(b"CONFIG", b"SET", b"maxmemory", b"%d" % (used + 3_000_000))
    count = 60_000

    with pytest.raises(StoreFullError, match="room for all keys") as caught:
        store.write(ENTITY, 0, 5_000, rows(0, count), cases.NOW_MS)

    assert 0 < caught.value.refused < count
    assert caught.value.written + caught.value.refused == count
    stored = [key for key in redis(b"KEYS", b"*") if b"_id" in key]
    assert caught.value.written <= len(stored) < count
    fields = {redis(b"HLEN", key) for key in stored[:: len(stored) // 500]}
    assert fields == {4}, "fence, time, and two features"
    with pytest.raises(StoreFullError):
        store.write(ENTITY, 0, 5_000, rows(count, count), cases.NOW_MS)

    redis(b"CONFIG", b"SET", b"maxmemory", b"0")
    assert store.write(ENTITY, 0, 5_000, rows(0, count), cases.NOW_MS) == count


def test_a_server_that_hangs_costs_no_more_than_the_timeout(store, server):
    marker = store.open(ENTITY, 0, "plan", 5_000)
    hasty = RedisOnlineStore(server.url, timeout_s=0.3)
    os.kill(server.record.pid, signal.SIGSTOP)

    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="Timeout"):
        hasty.write(ENTITY, 0, marker.lineage, rows(0, 50_000), cases.NOW_MS)
    hasty.close()
    assert time.monotonic() - started < 30, "it ended by itself"

    os.kill(server.record.pid, signal.SIGCONT)
    assert store.beat(ENTITY, 0, marker) == marker
    assert store.write(ENTITY, 0, marker.lineage, rows(0, 1_000, version=2), cases.NOW_MS) == 1_000


def test_a_server_that_refuses_writes_is_no_crash_of_the_writer(store, redis):
    marker = store.open(ENTITY, 0, "plan", 5_000)
    redis(b"REPLICAOF", b"127.0.0.1", b"1")

    with pytest.raises(StoreUnavailableError, match="READONLY"):
        store.write(ENTITY, 0, marker.lineage, rows(0, 10), cases.NOW_MS)

    redis(b"REPLICAOF", b"NO", b"ONE")
    assert store.write(ENTITY, 0, marker.lineage, rows(0, 10), cases.NOW_MS) == 10


def test_a_url_that_is_none_is_refused_without_its_password():
    with pytest.raises(StoreUnavailableError, match=r"got 'http://host'") as caught:
        RedisOnlineStore("http://user:secret@host")
    assert "secret" not in str(caught.value)


WRITER = """
import random, sys
import numpy as np
import store_cases as cases
from headrace.features.store.redis_store import RedisOnlineStore

store, seeded, count = RedisOnlineStore(sys.argv[1]), random.Random(int(sys.argv[2])), 100
fences = [(lineage, version, as_of) for lineage in (1, 2, 9, 10) for version in range(1, 51)
          for as_of in (version, version + 1)]
seeded.shuffle(fences)
for lineage, version, as_of in fences:
    keys = seeded.sample(range(count), 50)
    value = lineage * 1_000_000 + version * 1_000 + as_of
    rows = cases.rows(keys, np.full((50, 2), value), 0, as_of, version)
    store.write(cases.entity(), 0, lineage, rows, 0)
    for key in keys:
        print(key, value)
"""


def test_two_writers_in_any_order_leave_the_newest_of_all_they_wrote(server, redis, repository):
    environment = {**os.environ, "PYTHONPATH": str(repository / "tests")}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, server.url, seed],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for seed in ("1", "2")
    ]
    newest = {}
    for writer in writers:
        output, _ = writer.communicate(timeout=240)
        assert writer.returncode == 0
        for line in output.splitlines():
            key, value = map(int, line.split())
            newest[key] = max(newest.get(key, 0), value)

    assert len(newest) == 100
    found = {}
    for name in redis(b"KEYS", b"*customer_id*"):
        key = int.from_bytes(name[-12:-4], "little")
        fence = Fence.read(redis(b"HGET", name, fence_field(ENTITY.pipeline)))
        assert redis(b"HEXISTS", name, time_field("spending")) == 1
        found[key] = fence.lineage * 1_000_000 + fence.version * 1_000 + fence.as_of_ms
        values = redis(b"HVALS", name)
        assert b"\x29" + np.float64(newest[key]).tobytes() in values
    assert found == newest
