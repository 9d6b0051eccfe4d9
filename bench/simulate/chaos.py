"""Which faults fall where: drawn from the seed, some kinds more often in one run than another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.simulate.process import Process
    from bench.simulate.world import World

PROCESS_FAULTS = ("kill", "freeze", "away", "join", "stop")
REQUEST_FAULTS = ("lost_request", "lost_answer", "late", "reset")
FREEZE_S = (0.5, 14.0)
AWAY_S = (0.1, 10.0)
# Calls of ports between two faults of processes, at most.
CALLS_MAX = (30, 150, 400)


class Chaos:
    """Draws faults until there were enough; then everything works."""

    def __init__(self, world: World, faults_max: int) -> None:
        draw = world.draw
        self._world = world
        # Of processes, and of requests.
        self._processes_left = draw.randint(0, faults_max)
        self._requests_left = draw.randint(0, faults_max)
        self._weights = [draw.random() ** 2 for _ in PROCESS_FAULTS]
        self._request_odds = draw.choice((0.0, 0.02, 0.1, 0.4))
        self._request_weights = [draw.random() for _ in REQUEST_FAULTS]
        self._trouble_odds = draw.choice((0.0, 0.01, 0.05))
        self._calls_max = draw.choice(CALLS_MAX)
        self._calls = draw.randint(1, self._calls_max)
        self._slow_odds = draw.choice((0.0, 0.0, 0.02, 0.1))
        self._full_odds = draw.choice((0.0, 0.0, 0.05, 0.3))
        self.happened: list[str] = []
        self.strike: Callable[[str, Process], None] = lambda _fault, _process: None

    def at_call(self, process: Process, call: str) -> None:
        """Let a fault fall on a process, now and then."""
        self._calls -= 1
        if self._calls > 0 or self._processes_left <= 0:
            return
        self._calls = self._world.draw.randint(1, self._calls_max)
        (fault,) = self._world.draw.choices(PROCESS_FAULTS, self._weights)
        self._processes_left -= 1
        self._tell(fault, process.name, call)
        self.strike(fault, process)

    def fate(self, process: Process, request: str) -> str:
        """Return what becomes of a request that ends a transaction or commits offsets."""
        if self._requests_left <= 0 or self._world.draw.random() >= self._request_odds:
            return ""
        (fault,) = self._world.draw.choices(REQUEST_FAULTS, self._request_weights)
        self._requests_left -= 1
        self._tell(fault, process.name, request)
        return fault

    def trouble(self, process: Process, request: str) -> bool:
        """Whether the coordinator refuses a request."""
        if self._requests_left <= 0 or self._world.draw.random() >= self._trouble_odds:
            return False
        self._requests_left -= 1
        self._tell("refused", process.name, request)
        return True

    def is_full(self) -> bool:
        """Whether a producer's queue has no room."""
        return self._requests_left > 0 and self._world.draw.random() < self._full_odds

    def is_slow(self) -> bool:
        """Whether a ticket takes long."""
        return self._requests_left > 0 and self._world.draw.random() < self._slow_odds

    def _tell(self, fault: str, who: str, where: str) -> None:
        self.happened.append(fault)
        self._world.note(who, f"FAULT {fault}", "at", where)
