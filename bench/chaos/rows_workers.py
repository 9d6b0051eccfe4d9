"""Rows of the fault matrix whose fault is a worker's end: killed, frozen, doubled, told to go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.chaos.rows import Outcome, Row, Size
from bench.chaos.scene import ONE_ENTITY, TWO_ENTITIES, Instant, Scene
from bench.measure import BenchError

if TYPE_CHECKING:
    from bench.chaos.rows import Lab
    from bench.chaos.verdict import Verdict
    from bench.live import LiveWorker

#: For how long events come in after a worker is ready; it is killed somewhere in it.
FED_S = 0.5
#: Events that wait for a worker before it starts: what it writes first shows when it is at work.
FEW = 20
FIRST_OUTPUT_S = 60.0


def kill_at_random(lab: Lab, size: Size) -> Outcome:
    """Row 1: one worker after the other is killed while it works.

    Half of the kills hit a pipeline of one entity, half one of two.
    """
    draw = lab.random
    verdicts: list[Verdict] = []
    recovery_s: list[float] = []
    kills_of = {ONE_ENTITY: size.runs - size.runs // 2, TWO_ENTITIES: size.runs // 2}
    done = 0
    for definitions, kills in kills_of.items():
        if not kills:
            continue
        events = size.events * kills // size.runs
        with Scene(lab, f"scene{len(verdicts)}", definitions=definitions) as scene:
            killed: Instant | None = None
            for _ in range(kills):
                worker = scene.start()
                scene.send(FEW)
                worker.wait_ready()
                _recovered(scene, killed, recovery_s)
                scene.feed(events // (kills + 1) - FEW, FED_S)
                killed = _kill(scene, worker, draw.uniform(0, FED_S))
                done += 1
                lab.advance(done)
            scene.send(events - scene.sent)
            scene.start()
            _recovered(scene, killed, recovery_s)
            verdicts.append(scene.verdict())
    return Outcome.of(size.runs, verdicts, max(recovery_s))


def _kill(scene: Scene, worker: LiveWorker, after_s: float) -> Instant:
    """Kill a worker so long after its next output was seen."""
    seen = scene.reader.count()
    if not scene.reader.wait(lambda: scene.reader.count() > seen, FIRST_OUTPUT_S):
        msg = f"a worker must commit something before it is killed; see {worker.log}"
        raise BenchError(msg)
    time.sleep(after_s)
    worker.kill()
    return Instant.now()


def _recovered(scene: Scene, killed: Instant | None, recovery_s: list[float]) -> None:
    """Note how long after a kill the next output came."""
    if killed is not None:
        found = scene.recovery_s(killed)
        assert found is not None, "something was committed after the kill"
        recovery_s.append(found)


ROWS = (
    Row(
        1,
        "kill -9 of a worker at random instants",
        "100 kills over 100,000 events",
        kill_at_random,
        full=Size(runs=100, events=100_000),
        ci=Size(runs=4, events=8_000),
    ),
)
