"""What was freed in pieces goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Blocks of 2 kB, of which each hundredth stays: nothing goes back by itself.
FREED_MB = 190
SCRIPT = """
import numpy, psutil
from headrace.runtime.memory import MemoryReturn
me = psutil.Process()
blocks = [numpy.ones(2_000, numpy.uint8) for _ in range(100_000)]
kept = blocks[::100]
full = me.memory_info().rss
del blocks
before = me.memory_info().rss
returns = MemoryReturn(0.01)
returns.start()
while me.memory_info().rss > before - {freed_mb} // 2 * 2**20:
    pass
returns.stop()
print((full - before) // 2**20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not the GNU C library")
def test_free_pieces_between_what_is_in_use_go_back_to_the_system():
    script = SCRIPT.format(freed_mb=FREED_MB)

    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )

    # Without it, little had.
    assert int(found.stdout) < FREED_MB // 4
