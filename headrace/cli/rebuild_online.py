"""``headrace rebuild-online``: the workers write every entity to the online store again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import AsJson, Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.features.store.port import OnlineStore, Rebuild
    from headrace.features.store.views import OnlineEntity
    from headrace.runtime.settings import Settings

_POLL_S = 0.2
_STALL_S = 60.0


def rebuild_online(
    entity: Annotated[
        str | None, typer.Option(help="Only this one; otherwise all that are served.")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="For so many seconds workers may not answer.")
    ] = 15.0,
    *,
    project: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Have the running workers write all entities to the online store again.

    Workers do so by themselves when the store has lost something; this is for when somebody has
    changed what stands in it. Scoring goes on meanwhile.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from headrace.features.compiler import compile_project
    from headrace.features.project import load_project
    from headrace.features.store.redis_store import RedisOnlineStore
    from headrace.features.store.views import online_entities
    from headrace.runtime.dev.stack import redis_url

    loaded = load_project(project)
    _check_enabled(loaded.settings)
    served = online_entities(compile_project(loaded, loaded.settings.topics.partitions))
    wanted = _chosen([one for stages in served.values() for one in stages.values()], entity)
    store = RedisOnlineStore(redis_url(loaded.settings, loaded.folder))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    started_s = time.monotonic()
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        tasks = {one: progress.add_task(one.entity, total=None) for one in wanted}

        def show(one: OnlineEntity, written: int, total: int) -> None:
            progress.update(tasks[one], completed=written, total=total)

        results = _rebuild(store, wanted, wait, show)
    store.close()
    _print(results, time.monotonic() - started_s, as_json=as_json)


def _rebuild(
    store: OnlineStore,
    entities: Sequence[OnlineEntity],
    wait_s: float,
    show: Callable[[OnlineEntity, int, int], None],
) -> dict[OnlineEntity, int]:
    """Ask, and return the number of keys of each entity once all are written."""
    numbers = {one: store.request_rebuild(one) for one in entities}
    done: dict[OnlineEntity, int] = {}
    asked_s = changed_s = time.monotonic()
    before: dict[OnlineEntity, Mapping[int, Rebuild]] = {}
    while len(done) < len(entities):
        time.sleep(_POLL_S)
        now_s = time.monotonic()
        for one, number in numbers.items():
            found = {p: r for p, r in store.rebuilds(one).items() if r.request >= number}
            silent = sorted(store.markers(one).keys() - found.keys())
            if found != before.get(one):
                before[one], changed_s = found, now_s
            if found and not silent:
                show(one, sum(r.written for r in found.values()), _total(found))
                if all(r.done for r in found.values()):
                    done[one] = _total(found)
            elif now_s - asked_s > wait_s:
                raise _no_answer(one, silent, wait_s)
        if now_s - changed_s > max(_STALL_S, wait_s):
            raise _stalled(next(one for one in entities if one not in done))
    return done


def _total(found: Mapping[int, Rebuild]) -> int:
    return sum(one.total for one in found.values())


def _no_answer(entity: OnlineEntity, silent: Sequence[int], wait_s: float) -> Exception:
    from headrace.features.store.errors import StoreError
    from headrace.runtime.errors import explain

    which = f"no worker, partitions {silent}" if silent else "no worker"
    rule = f"be kept by workers that answer in {wait_s:g} s"
    hint = "start 'headrace worker'; one that still replays its log answers when it has caught up"
    return StoreError(explain("entity", rule, which, entity.entity, hint))


def _stalled(entity: OnlineEntity) -> Exception:
    from headrace.features.store.errors import StoreError
    from headrace.runtime.errors import explain

    rule = f"go on within {_STALL_S:g} s"
    return StoreError(
        explain("the rebuild", rule, "no news", entity.entity, "see the workers' log")
    )


def _chosen(entities: Sequence[OnlineEntity], name: str | None) -> list[OnlineEntity]:
    from headrace.features.errors import did_you_mean
    from headrace.features.store.errors import StoreError
    from headrace.runtime.errors import explain

    found = [one for one in entities if name in (None, one.entity)]
    if not found:
        names = sorted({one.entity for one in entities})
        hint = did_you_mean(name or "", names)
        raise StoreError(explain("entity", "be served online", name, "this project", hint))
    return found


def _check_enabled(settings: Settings) -> None:
    from headrace.runtime.errors import SettingsError, explain

    if not settings.online.enabled:
        hint = "set online.enabled: true"
        text = explain("the online store", "be enabled", "false", settings.project, hint)
        raise SettingsError(text)


def _print(results: Mapping[OnlineEntity, int], seconds: float, *, as_json: bool) -> None:
    import orjson

    if as_json:
        # The same entity may be served by several pipelines, each with views of its own.
        entities: dict[str, dict[str, int]] = {}
        for one, count in results.items():
            written = entities.setdefault(one.entity, {"written": 0})
            written["written"] = max(written["written"], count)
        answer = {"entities": entities, "seconds": round(seconds, 3)}
        typer.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
        return
    for one, count in results.items():
        typer.echo(f"{one.entity} ({one.pipeline}): {count:,} entities written again")
