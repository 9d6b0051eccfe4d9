"""Writes the list of Kafka's jars anew: ``python -m headrace.runtime.dev.pin > jars.sha256``.

For maintainers who move to another Kafka; jgo (a development dependency) resolves what it needs.
"""

from __future__ import annotations

import hashlib
import sys

# Resolved alone: with a log4j coordinate beside it jgo 3.2 picks kafka-clients 3.8.
KAFKA = "org.apache.kafka:kafka_2.13:4.1.0"
# So that the broker's warnings reach its log file; it must fit slf4j-api, which Kafka brings.
LOGGER = "org.slf4j:slf4j-simple:1.7.36"


def main() -> None:
    """Print one line a jar: sha256, path in a Maven repository."""
    import jgo

    lines = {}
    for coordinate in (KAFKA, LOGGER):
        for artifact in jgo.resolve(coordinate):
            folder = f"{artifact.groupId.replace('.', '/')}/{artifact.artifactId}"
            path = f"{folder}/{artifact.version}/{artifact.filename}"
            lines[path] = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
    sys.stdout.write(
        "# Apache Kafka 4.1.0 and all that it needs, each with the sha256 that a download must "
        "have.\n# Written by: python -m headrace.runtime.dev.pin\n"
    )
    for path, sha256 in sorted(lines.items()):
        sys.stdout.write(f"{sha256} {path}\n")


if __name__ == "__main__":
    main()
