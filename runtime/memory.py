"""Memory that was freed goes back to the system: allocators keep what lies between what is in use.

Partitions come and go, and each renewed Kafka client has threads: what they leave is free, but in
pieces, and the resident set of a worker that runs for months would grow by a little each time.
Arrow's own allocator keeps segments for each thread and cannot be made to let them go.
"""

from __future__ import annotations

import ctypes
import threading

import pyarrow as pa

EVERY_S = 60.0


def share_allocator() -> None:
    """Let Arrow take its memory where all else takes it, from now on."""
    pa.set_memory_pool(pa.system_memory_pool())


def give_back() -> None:
    """Return what the C library holds and does not use, where it can be asked to."""
    # glibc only; others have no such thing, or no need of it.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class MemoryReturn:
    """Gives memory back at an interval, on a thread: a call takes about a millisecond."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-memory", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            give_back()
