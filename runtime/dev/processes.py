"""Child processes that outlive their parent, and are never taken for another with the same id."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from headrace.runtime.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POLL_S = 0.02
_LOG_TAIL_LINES = 15
_KILL_TIMEOUT_S = 30.0
_LOWEST_PORT = 10_000


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A started process: ``birth`` tells it from a later one that got the same id."""

    pid: int
    birth: str


def birth_of(pid: int) -> str | None:
    """Return what names this run of ``pid`` for good; None if it does not run (or is a zombie).

    On Linux: the boot's id and the start in ticks since that boot, which no step of the wall
    clock changes.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None if Path("/proc/self").exists() else _birth_elsewhere(pid)
    # The name, in parentheses, may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    state, threads, start = fields[0], int(fields[17]), fields[19]
    # A killed process whose first thread is gone still holds its ports and locks by the others.
    return None if state == "Z" and threads <= 1 else f"{boot}/{start}"


def _birth_elsewhere(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def alive(record: ProcessRecord | None) -> bool:
    """Return whether that very process still runs."""
    return record is not None and birth_of(record.pid) == record.birth


def spawn(
    command: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str] | None = None
) -> ProcessRecord:
    """Start ``command`` in ``folder``, in its own session, with its output appended to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=None if environment is None else {**os.environ, **environment},
            start_new_session=True,
        )
    _children[process.pid] = process
    birth = birth_of(process.pid)
    if birth is None:
        raise died(command[0], log)
    return ProcessRecord(process.pid, birth)


# Popen objects of our own children: waiting on them is what keeps them from staying as zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


def stop(record: ProcessRecord | None, timeout_s: float) -> bool:
    """Ask the process to end, make it after ``timeout_s``; return whether it ended by itself."""
    if record is None or not alive(record):
        return True
    clean = _signal_and_wait(record, signal.SIGTERM, timeout_s)
    if not clean:
        _signal_and_wait(record, signal.SIGKILL, timeout_s)
    return clean


def kill(record: ProcessRecord | None) -> None:
    """End the process at once, frozen or not; it gets no chance to tidy up."""
    if record is not None and alive(record):
        _signal_and_wait(record, signal.SIGKILL, _KILL_TIMEOUT_S)


def _signal_and_wait(record: ProcessRecord, number: signal.Signals, timeout_s: float) -> bool:
    try:
        os.kill(record.pid, number)
    except ProcessLookupError:
        return True
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        child = _children.get(record.pid)
        if child is not None and child.poll() is not None:
            del _children[record.pid]
            return True
        if not alive(record):
            return True
        time.sleep(POLL_S)
    return False


def died(name: str, log: Path) -> EmbeddedError:
    """Return the error for a process that ended while it was starting, with the end of its log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    tail = "\n  ".join(lines[-_LOG_TAIL_LINES:]) or "(its log is empty)"
    return EmbeddedError(f"{name} must keep running; it ended while starting; see {log}:\n  {tail}")


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports of the loopback interface that are free right now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def steady_ports(count: int) -> list[int]:
    """Return ports for servers that go away and come back at the same address.

    They lie below those that the system gives to outgoing connections: a client that knocks at a
    server that is away could else be given the very port, and be connected with itself.
    """
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    except OSError:
        return free_ports(count)
    ports: set[int] = set()
    # Several runs on one machine choose at the same time.
    draw = random.SystemRandom()
    while len(ports) < count:
        port = draw.randrange(_LOWEST_PORT, int(text.split()[0]))
        if port_is_free(port):
            ports.add(port)
    return sorted(ports)


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on the loopback port now."""
    with socket.socket() as one:
        # As servers do: connections of an earlier run in TIME_WAIT do not hold the port.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def port_answers(port: int) -> bool:
    """Return whether something accepts connections on the loopback port."""
    with socket.socket() as one:
        one.settimeout(1.0)
        return one.connect_ex(("127.0.0.1", port)) == 0
