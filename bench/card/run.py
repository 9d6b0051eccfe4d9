"""``./dev bench card``: ours, the bare client loop and Kafka Streams on one topic in one run."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.card import ours, peers, topics
from bench.card.job import EVENT_COUNT, encode, make_events, train_model
from bench.card.latency import measure_latency
from bench.card.reference import reference_rows
from bench.latency import GUARANTEES, P99_MS_MAX, broker_pid
from bench.measure import BenchError, drain
from bench.project import fresh_stack
from bench.report import Bound, exit_code, print_bounds, spread, write_json
from headrace.schemas.registry import SchemaRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from bench.card.job import Events
    from bench.card.ours import Check
    from bench.card.peers import PeerRun
    from bench.latency import LatencyRun
    from bench.measure import Beside, Drain
    from headrace.runtime.dev.stack import Endpoints

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".bench"
BARE_TOPIC = "card_bare"

OF_BARE_MIN = 0.40
# With Redis, snapshots and the lake's process on the same cores.
OF_BARE_WITH_LAKE_MIN = 0.30
OF_KAFKA_STREAMS_MIN = 1.5
CPU_S_PER_MILLION_MAX = 10.0
# What exactly-once may cost.
OF_AT_LEAST_ONCE_MIN = 0.85


@dataclass(frozen=True, slots=True)
class Ours:
    """A run of ours: what the worker did, what others did for it, and whether all is right."""

    run: Drain
    beside: list[Beside]
    check: Check


@dataclass(slots=True)
class Results:
    """All that one run of the bench measured."""

    bare: list[Drain] = field(default_factory=list)
    ours: list[Ours] = field(default_factory=list)
    exactly_once: list[Ours] = field(default_factory=list)
    everything: list[Ours] = field(default_factory=list)
    peer: PeerRun | None = None
    peer_missing: str | None = None
    latency: LatencyRun | None = None

    @property
    def all_ours(self) -> list[Ours]:
        """Every run of ours."""
        return [*self.ours, *self.exactly_once, *self.everything]


def main(arguments: Sequence[str]) -> int:
    """Run the bench and return 0 if the bounds within the run hold and all outputs are right."""
    options = _options(arguments)
    console = Console()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    events = make_events(options.events)
    console.print(f"{len(events):,} events; the reference is computed once and kept in {work}")
    bodies = encode(events, work / f"card-events-{len(events)}.arrow")
    model = train_model(work / "card-model.txt")
    reference = reference_rows(events, model, work / f"card-reference-{len(events)}.npy")
    results = Results()
    stack = fresh_stack(work / "stack")
    try:
        endpoints = stack.up()
        ours.prepare(work / "card", "card_fill", endpoints)
        with SchemaRegistry(endpoints.registry_url) as registry:
            latest = registry.latest(f"{ours.SOURCE}-value")
        assert latest is not None, ours.SOURCE
        schema_id = latest[0]
        values = topics.framed(bodies, schema_id)
        topics.fill(endpoints.bootstrap_servers, ours.SOURCE, events, values)
        for number in range(1, options.runs + 1):
            console.print(f"run {number} of {options.runs}: bare loop, ours, with the lake beside")
            results.bare.append(_bare(endpoints, len(events), work))
            place = endpoints, model, reference, work
            results.ours.append(_ours(f"run_{number}", *place))
            if not options.skip_exactly_once:
                once = _ours(f"once_{number}", *place, guarantee="exactly_once")
                results.exactly_once.append(once)
            if not options.skip_lake:
                results.everything.append(_ours(f"lake_{number}", *place, with_lake=True))
        _peer(results, options, endpoints, model, reference, console)
        if not options.skip_latency:
            console.print("latency at 1,000 events/s")
            results.latency = measure_latency(
                endpoints, work, model, reference[:16, 1:], events, values, broker_pid(stack)
            )
    finally:
        stack.down()
    return _report(results, events, console, work)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench card", description=__doc__)
    parser.add_argument("--events", type=int, default=EVENT_COUNT)
    parser.add_argument("--runs", type=int, default=1, help="of the bare loop and of ours, in turn")
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument("--skip-latency", action="store_true")
    parser.add_argument("--skip-exactly-once", action="store_true")
    parser.add_argument("--skip-lake", action="store_true", help="no run with 'headrace lake'")
    parser.add_argument("--peers", type=Path, default=ROOT.parent / "shared" / "peers")
    parser.add_argument("--work", type=Path, default=WORK)
    return parser.parse_args(arguments)


def _bare(endpoints: Endpoints, events: int, work: Path) -> Drain:
    servers = endpoints.bootstrap_servers
    topics.create(servers, BARE_TOPIC)
    command = [sys.executable, "-m", "bench.card.bare", servers, ours.SOURCE, BARE_TOPIC]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        return drain(
            "bare loop",
            [*command, str(events)],
            servers,
            [BARE_TOPIC],
            events,
            environment=environment,
            log=work / "bare.log",
        )
    finally:
        topics.delete(servers, BARE_TOPIC)


def _ours(
    name: str,
    endpoints: Endpoints,
    model: Path,
    reference: NDArray[np.float64],
    work: Path,
    *,
    guarantee: str = GUARANTEES[0],
    with_lake: bool = False,
) -> Ours:
    # The topics of the run before, or of the project that was made to fill the source.
    topics.delete(endpoints.bootstrap_servers, ours.PREDICTIONS, ours.SNAPSHOTS)
    project = ours.prepare(work / "card", f"card_{name}", endpoints, guarantee)
    ours.deploy(project, model, reference[:16, 1:])
    log = work / f"worker-{name}.log"
    log.unlink(missing_ok=True)
    called = "headrace, lake beside" if with_lake else f"headrace, {guarantee}"
    run, beside = ours.measure(project, called, len(reference), log, with_lake=with_lake)
    return Ours(run, beside, ours.check(project, reference))


def _peer(
    results: Results,
    options: argparse.Namespace,
    endpoints: Endpoints,
    model: Path,
    reference: NDArray[np.float64],
    console: Console,
) -> None:
    reason = "asked to skip" if options.skip_peers else peers.missing(options.peers)
    if reason is None and len(reference) != EVENT_COUNT:
        reason = f"the peers' harness is made for {EVENT_COUNT:,} events"
    if reason is not None:
        results.peer_missing = reason
        console.print(f"[yellow]Kafka Streams is left out: {reason}[/]")
        return
    console.print("Kafka Streams")
    peers_work = options.work / "peers"
    try:
        peers.build(options.peers, peers_work)
        results.peer = peers.kafka_streams(
            options.peers,
            peers_work,
            endpoints.bootstrap_servers,
            ours.SOURCE,
            model.absolute(),
            reference,
        )
    except BenchError as error:
        results.peer_missing = str(error)
        console.print(f"[yellow]Kafka Streams gave no figure: {error}[/]")


def _report(results: Results, events: Events, console: Console, work: Path) -> int:
    table = Table("who", "events/s", "10-90 %", "CPU s per 1M", "RSS MiB", "outputs", title="card")
    for column in table.columns[1:5]:
        column.justify = "right"
    for run in results.bare:
        table.add_row(*_row(run), "constant")
    for one in results.all_ours:
        verdict = "[green]all right[/]" if one.check.holds else f"[red]{one.check}[/]"
        table.add_row(*_row(one.run), verdict)
        for other in one.beside:
            cpu_s = f"{other.cpu_s_per_million:.1f}"
            table.add_row(f"  {other.name}", "-", "-", cpu_s, "-", other.did)
    peer = results.peer
    if peer is not None:
        cells = (f"{peer.rate:,.0f}", "-", f"{peer.cpu_s_per_million:.1f}")
        table.add_row(peer.name, *cells, f"{peer.rss_mib_max:,.0f}", peer.check)
    console.print(table)
    bounds = _bounds(results)
    print_bounds(console, bounds)
    ratios = _once_of_least(results)
    if ratios:
        console.print(f"exactly-once of at-least-once, by turn: {spread(ratios)}")
    figures = {"events": len(events), **asdict(results)}
    write_json(work / "card.json", "card", figures, bounds)
    console.print(f"figures in {work / 'card.json'}")
    right = all(one.check.holds for one in results.all_ours)
    return exit_code(bounds) if right else 1


def _row(run: Drain) -> tuple[str, ...]:
    rates = f"{run.rate:,.0f}", f"{run.middle_rate:,.0f}"
    return run.name, *rates, f"{run.cpu_s_per_million:.1f}", f"{run.rss_mib_max:,.0f}"


def _bounds(results: Results) -> list[Bound]:
    rate = _rate(results.ours)
    bare = statistics.median(run.rate for run in results.bare)
    cpu_s = statistics.median(one.run.cpu_s_per_million for one in results.ours)
    of_bare = _rate(results.everything) / bare if results.everything else None
    ratios = _once_of_least(results)
    once = statistics.median(ratios) if ratios else None
    of_peer = None if results.peer is None else rate / results.peer.rate
    latency = results.latency
    return [
        Bound("of the bare loop", rate / bare, OF_BARE_MIN, at_least=True),
        Bound("… with the lake beside", of_bare, OF_BARE_WITH_LAKE_MIN, at_least=True),
        Bound("exactly-once of at-least-once", once, OF_AT_LEAST_ONCE_MIN, True, decides=False),
        Bound("of Kafka Streams", of_peer, OF_KAFKA_STREAMS_MIN, at_least=True),
        Bound("CPU s per million events", cpu_s, CPU_S_PER_MILLION_MAX, at_least=False),
        # An absolute time depends on the machine, so it is reported and does not decide.
        Bound(
            "p99 ms at 1,000 events/s",
            None if latency is None else latency.p99_ms,
            P99_MS_MAX["card", GUARANTEES[0]],
            at_least=False,
            decides=False,
        ),
    ]


def _once_of_least(results: Results) -> list[float]:
    """Return the rate of exactly-once over that of at-least-once, of each turn."""
    pairs = zip(results.ours, results.exactly_once, strict=False)
    return [once.run.rate / least.run.rate for least, once in pairs]


def _rate(runs: Sequence[Ours]) -> float:
    return statistics.median(one.run.rate for one in runs)
