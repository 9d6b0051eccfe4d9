"""Infrastructure whose brokers can be brought down one by one, with Redis and registry beside."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bench.project import fresh_stack
from headrace.runtime.dev.cluster import Cluster
from headrace.runtime.dev.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace.runtime.dev.stack import Endpoints

_CLUSTER = "cluster"


@contextlib.contextmanager
def cluster_stack(folder: Path, nodes: int) -> Iterator[Endpoints]:
    """Run a cluster of so many nodes, Redis and registry over an empty folder.

    ``cluster_of`` gives the cluster to whoever knows the folder.
    """
    fresh_stack(folder)
    with Cluster(folder / _CLUSTER, nodes=nodes) as cluster:
        kafka = {"bootstrap.servers": cluster.bootstrap_servers}
        with Stack(folder, external_kafka=kafka) as endpoints:
            yield endpoints


def cluster_of(folder: Path, nodes: int) -> Cluster:
    """Return the cluster below the folder of a ``cluster_stack`` that is up."""
    return Cluster(folder / _CLUSTER, nodes=nodes)
