"""What headrace.streams.app relies on in Faust 0.15.3, so that an upgrade cannot change it unseen.

Each case runs a real Faust worker in a process of its own and reads what it reports.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap

import faust
import pytest

from headrace.streams.app import StreamApp

PRELUDE = """
import asyncio, json, sys
from headrace.streams.app import StreamApp, run
from mode import CrashingSupervisor, Service

app = StreamApp("contract", broker="kafka://unused", store="memory://", web_enabled=False)
channel = app.channel(maxsize=2)
told = {"seen": [], "events": []}

def finish(code):
    told["code"] = code
    print(json.dumps(told), flush=True)
    sys.exit(0)
"""


def run_worker(body: str) -> dict[str, object]:
    """Run a Faust app and return what it told."""
    script = PRELUDE + textwrap.dedent(body) + "\nfinish(run(app))\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def test_the_version_is_the_one_that_was_looked_at():
    assert faust.__version__ == "0.15.3"


def test_an_agent_that_raises_stops_the_worker_with_a_code_and_on_stop_sees_the_crash():
    told = run_worker(
        """
        @app.agent(channel, concurrency=1, supervisor_strategy=CrashingSupervisor)
        async def agent(stream):
            async for item in stream:
                told["seen"].append(item)
                if item == 3:
                    raise RuntimeError("boom")

        @app.service
        class Source(Service):
            async def on_start(self):
                app.flow_control.resume()
                self.add_future(self.feed())

            async def feed(self):
                for item in range(6):
                    await channel.put(item)

            async def on_stop(self):
                told["events"].append(["on_stop", app.crashed])
        """
    )

    assert told["seen"] == [0, 1, 2, 3]
    assert told["events"] == [["on_stop", True]]
    assert told["code"] == 1


def test_a_service_starts_after_the_agents_and_is_stopped_while_they_still_run():
    told = run_worker(
        """
        import os, signal

        @app.agent(channel, concurrency=1, supervisor_strategy=CrashingSupervisor)
        async def agent(stream):
            async for item in stream:
                told["seen"].append(item)
                drained.set() if item == "last" else None

        drained = asyncio.Event()

        @app.service
        class Source(Service):
            async def on_start(self):
                told["events"].append(["subscribers", channel.subscriber_count])
                app.flow_control.resume()
                asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGTERM)

            async def on_stop(self):
                await channel.put("last")
                await asyncio.wait_for(drained.wait(), 5)
                told["events"].append(["crashed", app.crashed])
        """
    )

    assert told["events"] == [["subscribers", 1], ["crashed", False]]
    assert told["seen"] == ["last"]
    assert told["code"] == 0


def test_an_exception_thrown_by_a_service_thread_ends_the_worker_with_a_code():
    told = run_worker(
        """
        @app.service
        class Source(Service):
            async def on_start(self):
                app.flow_control.resume()
                loop = asyncio.get_running_loop()
                loop.call_later(
                    0.1, lambda: asyncio.ensure_future(self.crash(RuntimeError("from the thread")))
                )

            async def on_stop(self):
                told["events"].append(["on_stop", app.crashed])
        """
    )

    assert told["events"] == [["on_stop", True]]
    assert told["code"] == 1


@pytest.fixture
def app() -> StreamApp:
    return StreamApp("contract", broker="kafka://unused", store="memory://", web_enabled=False)


def test_resuming_the_flow_empties_the_queues_so_it_is_done_once_before_the_first_put(app):
    async def scenario() -> tuple[int, int]:
        channel = app.channel(maxsize=4).clone(is_iterator=True)
        app.flow_control.resume()
        await channel.put("one")
        await channel.put("two")
        before = channel.queue.qsize()
        app.flow_control.resume()
        return before, channel.queue.qsize()

    assert asyncio.run(scenario()) == (2, 0)


def test_a_put_without_subscriber_vanishes_so_the_source_asserts_that_there_is_one(app):
    async def scenario() -> tuple[int, int]:
        channel = app.channel(maxsize=4)
        app.flow_control.resume()
        await channel.put("lost")
        subscriber = channel.clone(is_iterator=True)
        return channel.subscriber_count, subscriber.queue.qsize()

    assert asyncio.run(scenario()) == (1, 0)


def test_every_subscriber_gets_every_item_so_there_is_one_agent_per_channel(app):
    async def scenario() -> list[int]:
        channel = app.channel(maxsize=4)
        subscribers = [channel.clone(is_iterator=True) for _ in range(2)]
        app.flow_control.resume()
        await channel.put("twice")
        return [subscriber.queue.qsize() for subscriber in subscribers]

    assert asyncio.run(scenario()) == [1, 1]


def test_a_full_channel_makes_put_wait_which_is_the_backpressure(app):
    async def scenario() -> bool:
        channel = app.channel(maxsize=2)
        subscriber = channel.clone(is_iterator=True)
        app.flow_control.resume()
        await channel.put(1)
        await channel.put(2)
        third = asyncio.ensure_future(channel.put(3))
        await asyncio.sleep(0)
        waited = not third.done()
        await subscriber.queue.get()
        await asyncio.wait_for(third, 5)
        return waited

    assert asyncio.run(scenario())


def test_folders_are_made_by_the_method_that_our_app_takes_out(app, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    faust.App("plain", broker="kafka://unused")._create_directories()
    app._create_directories()

    assert [folder.name for folder in tmp_path.iterdir()] == ["plain-data"]
