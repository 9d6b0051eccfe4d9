"""Processes are known by more than their id."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from headrace.runtime.dev import processes
from headrace.runtime.dev.processes import ProcessRecord, alive, birth_of, spawn, stop


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_an_id_that_another_process_got_later_is_neither_alive_nor_stopped(sleeper):
    recycled = ProcessRecord(sleeper.pid, "boot/1")

    assert not alive(recycled)
    assert stop(recycled, 5.0)
    assert sleeper.poll() is None


def test_a_running_process_is_alive_and_an_ended_one_is_not(sleeper):
    record = ProcessRecord(sleeper.pid, birth_of(sleeper.pid))
    assert alive(record)

    sleeper.kill()
    sleeper.wait()

    assert not alive(record)


def test_a_process_that_ended_and_was_not_waited_for_is_not_alive(sleeper):
    record = ProcessRecord(sleeper.pid, birth_of(sleeper.pid))

    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)

    assert not alive(record)


def test_a_spawned_process_has_its_own_session_and_writes_to_its_log(tmp_path, wait_until):
    code = "import os, time; print(os.getsid(0), flush=True); time.sleep(600)"
    log = tmp_path / "log"

    record = spawn([sys.executable, "-u", "-c", code], log, tmp_path)
    wait_until(lambda: "\n" in log.read_text())

    assert log.read_text().strip() == str(record.pid)
    assert stop(record, 10.0)
    assert not alive(record)


def test_a_process_that_ignores_the_polite_signal_is_killed_after_the_time_given(
    tmp_path, wait_until
):
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    log = tmp_path / "log"
    record = spawn([sys.executable, "-u", "-c", code], log, tmp_path)
    wait_until(lambda: "\n" in log.read_text())

    assert not stop(record, 0.3)
    assert not alive(record)


def test_free_ports_are_different_and_free():
    ports = processes.free_ports(5)

    assert len(set(ports)) == 5
    assert all(map(processes.port_is_free, ports))


def test_a_port_that_something_listens_on_is_not_free_and_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        assert not processes.port_is_free(port)
        assert processes.port_answers(port)
    assert not processes.port_answers(port)
