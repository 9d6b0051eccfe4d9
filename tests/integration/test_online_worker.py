"""`headrace worker` keeps Redis: on the real broker, through everything that can befall a Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict

import pytest
from live import LiveWorker, make_project, payments

from headrace.features.store.connection import RedisConnection
from headrace.features.store.reader import OnlineReader
from headrace.features.store.request import request_for
from headrace.features.store.resp import command
from headrace.runtime.clock import SystemClock
from headrace.runtime.dev.processes import free_ports, stop
from headrace.runtime.dev.proxy import FaultProxy
from headrace.runtime.dev.redis import RedisServer

STALE_AFTER_MS = 4_000
# Row 26 of the fault matrix: right again 5 s after.
RIGHT_S = 5.0


class Redis:
    """A redis-server of the test's own, behind a proxy that the worker goes through."""

    def __init__(self, folder):
        self._server = RedisServer(folder)
        self.port = free_ports(1)[0]
        self.start()
        self.proxy = FaultProxy(self.port)
        self.url = f"redis://127.0.0.1:{self.proxy.port}"
        self.direct_url = f"redis://127.0.0.1:{self.port}"

    def start(self):
        self.record = self._server.start(self.port)
        self._server.wait_ready(self.record, self.port)

    def restart(self, number):
        os.kill(self.record.pid, number)
        stop(self.record, 10.0)
        self.start()

    def run(self, *arguments):
        connection = RedisConnection(self.direct_url)
        (reply,) = connection.run([command(arguments)], 1)
        connection.close()
        return reply

    def close(self):
        os.kill(self.record.pid, signal.SIGCONT)
        self.proxy.close()
        stop(self.record, 10.0)


class Served:
    """A live project whose events are sent bit by bit, and what Redis must hold of them."""

    def __init__(self, project, redis):
        self.project = project
        self.redis = redis
        self.sent = 0
        self.start_ms = SystemClock().now_ms() - 600_000
        self.amounts = defaultdict(list)
        self.request = request_for(project.plan.name, project.environment.plan)

    def send(self, count):
        messages, rows = payments(
            self.project, count, self.start_ms + 100 * self.sent, self.sent, self.sent
        )
        self.project.send(messages)
        self.sent += count
        for _, _, customer, amount in rows:
            self.amounts[customer].append(amount)

    def read(self):
        url = self.redis.direct_url if self.redis else self.project.environment.endpoints.redis_url
        with OnlineReader(self.request, url, STALE_AFTER_MS) as reader:
            return reader.read({"customer_id": list(self.amounts)})

    def faults(self):
        """Return what Redis does not hold, FRESH, of all that was sent."""
        wrong = []
        for row in self.read().to_dicts():
            amounts = self.amounts[row["customer_id"]]
            right = row["customer__status"] == "FRESH"
            for label in ("1h", "1d"):
                mean = row[f"customer__amount_mean_{label}"]
                right &= row[f"customer__count_{label}"] == len(amounts)
                right &= mean == pytest.approx(sum(amounts) / len(amounts), abs=1e-9)
            if not right:
                wrong.append((row, len(amounts)))
        return wrong

    def goes_on(self, count=100):
        """Send events and see their predictions come."""
        self.send(count)
        assert len(self.project.read("predictions", self.sent, timeout_s=30)) == self.sent


@pytest.fixture
def redis(tmp_path):
    made = Redis(tmp_path / "redis")
    yield made
    made.close()


@pytest.fixture
def served(project_folder, stack, redis):
    settings = project_folder / "headrace.yaml"
    settings.write_text(settings.read_text().replace(stack.redis_url, redis.url))
    project = make_project(project_folder)
    yield Served(project, redis)
    project.close()


def test_redis_may_be_restarted_emptied_filled_silent_and_slow(served, redis, wait_until):
    served.send(500)
    with LiveWorker(served.project.folder) as worker:
        wait_until(lambda: not served.faults(), 30)

        # Killed: what Redis had not saved is gone. Ended: it comes back as it was.
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            redis.restart(number)
            served.goes_on()
        wait_until(lambda: not served.faults(), 2 * RIGHT_S)

        redis.run(b"FLUSHALL")
        assert set(served.read().statuses("customer")) <= {"STALE", "FRESH"}
        assert all(count != 0 for count in served.read().table["customer__count_1d"].to_pylist())
        served.goes_on()
        wait_until(lambda: not served.faults(), 2 * RIGHT_S)

        redis.run(b"CONFIG", b"SET", b"maxmemory", b"1000")
        served.goes_on()
        worker.wait_for('headrace_online_errors_total{reason="full"}', 1)
        redis.run(b"CONFIG", b"SET", b"maxmemory", b"0")
        wait_until(lambda: not served.faults(), 2 * RIGHT_S)

        redis.proxy.silent = True
        served.goes_on()
        worker.wait_for('headrace_online_errors_total{reason="unavailable"}', 1)
        worker.wait_for("headrace_online_pending_entities{", 1)
        worker.wait_for("headrace_online_staleness_seconds{", STALE_AFTER_MS / 1000)
        assert set(served.read().statuses("customer")) == {"STALE"}
        redis.proxy.silent = False
        redis.proxy.delay_s = 0.25
        served.goes_on()
        wait_until(lambda: not served.faults(), 4 * RIGHT_S)
        redis.proxy.delay_s = 0.0

        samples = worker.metrics()
        assert samples['headrace_online_writes_total{entity="customer"}'] >= 50
        served.goes_on(50)
        assert worker.terminate() == 0, worker.output()
    # What was committed before the end was written before the end.
    assert served.project.committed() == served.sent
    assert served.faults() == []


def rebuild(folder, *options):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "headrace.cli.main",
            "rebuild-online",
            "--project",
            folder,
            *options,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_rebuild_brings_back_what_somebody_deleted(served, redis, wait_until):
    served.send(500)
    alone = rebuild(served.project.folder, "--wait", "1")
    assert alone.returncode == 1
    assert "no worker" in alone.stderr
    with LiveWorker(served.project.folder) as worker:
        wait_until(lambda: not served.faults(), 30)
        for key in [key for key in redis.run(b"KEYS", b"*") if b"customer_id" in key]:
            redis.run(b"DEL", key)
        assert set(served.read().statuses("customer")) == {"MISSING"}

        done = rebuild(served.project.folder, "--entity", "customer", "--json")

        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["entities"]["customer"]["written"] == len(served.amounts)
        assert served.faults() == []
        assert worker.terminate() == 0, worker.output()
    wrong = rebuild(served.project.folder, "--entity", "customr")
    assert wrong.returncode == 1
    assert "did you mean 'customer'" in wrong.stderr


def test_a_worker_without_the_online_store_asks_no_redis(project_folder, stack):
    settings = project_folder / "headrace.yaml"
    text = settings.read_text().replace(stack.redis_url, "redis://127.0.0.1:1")
    settings.write_text(text + "online:\n  enabled: false\n")
    project = make_project(project_folder)
    served = Served(project, None)
    with LiveWorker(project.folder) as worker:
        served.goes_on()
        samples = worker.metrics()
        assert worker.terminate() == 0, worker.output()
    project.close()

    assert not [name for name in samples if name.startswith("headrace_online_errors_total{")]
    assert "online_store" not in worker.output()
