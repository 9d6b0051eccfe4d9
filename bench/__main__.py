"""``python -m bench NAME …``: the benches by name, each with its own options (``--help``)."""

from __future__ import annotations

import importlib
import sys

from bench.measure import BenchError
from headrace.runtime.errors import HeadraceError

# A bench is a module with ``main(arguments) -> exit code``.
BENCHES = {
    "card": ("bench.card.run", "the card job: ours, the bare client loop, Kafka Streams"),
    "latency": (
        "bench.latency",
        "from produce to readable prediction at 1,000 events/s, one hop or two",
    ),
    "fraud": ("bench.fraud", "two entities, one process"),
    "scale": ("bench.scale", "two workers on this machine against one"),
    "read": ("bench.read", "the online store: written, and read beside the Feast SDK"),
    "lake": ("bench.lake", "topics into Delta tables, kills on the way, queries over them"),
    "drift": ("bench.drift_power", "which planted changes the drift report finds and names"),
    "receipts": ("bench.receipts", "10,000 predictions computed again, bit for bit"),
    "redis-faults": ("bench.redis_faults", "scoring and readers while Redis fails"),
    "restore": ("bench.restore", "a million keys kept beside the stream, and restored"),
    "history": ("bench.history", "training data from history, through the same kernel"),
}


def main() -> int:
    """Run the bench that the first argument names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in BENCHES:
        lines = [f"  {name:<14}{about}" for name, (_, about) in BENCHES.items()]
        sys.stderr.write("\n".join(["usage: python -m bench NAME [options]", *lines, ""]))
        return 2
    module = importlib.import_module(BENCHES[arguments[0]][0])
    try:
        return int(module.main(arguments[1:]))
    except (BenchError, HeadraceError) as error:
        sys.stderr.write(f"bench {arguments[0]}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
