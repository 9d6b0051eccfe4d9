"""``headrace fetch``: download the embedded Kafka ahead of time, as for an image."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.up import downloading


def fetch(
    *,
    mirror: Annotated[
        str | None, typer.Option(help="The root of a Maven repository, else Maven Central.")
    ] = None,
) -> None:
    """Bring Kafka's jars into the cache; what is there is not downloaded again."""
    from headrace.runtime.dev import jars

    with downloading() as show:
        paths = jars.fetch(mirror, lambda done, count: show("downloading Kafka", done, count))
    size = sum(path.stat().st_size for path in paths)
    typer.echo(f"{len(paths)} files, {size / 1e6:.0f} MB, in {jars.cache_folder()}")
