"""A virtual clock and a seeded scheduler: all that happens in a simulation is an event of it.

Actors are greenlets: plain blocking code that gives way where it would wait. One runs at a time,
and who comes next is a function of the seed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from typing import TYPE_CHECKING

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from collections.abc import Callable


class StuckError(AssertionError):
    """Nothing came of waiting: the run did not end in the time that it has."""


class Waiter:
    """An actor that waits to be woken, once."""

    __slots__ = ("_actor", "_woken")

    def __init__(self) -> None:
        self._actor = getcurrent()
        self._woken = False

    def wake(self) -> None:
        """Let the actor go on, unless it does already."""
        if not self._woken and not self._actor.dead:
            self._woken = True
            self._actor.switch()


class World:
    """Time, chance and what is to come."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.draw = random.Random(seed)
        self.now_s = 0.0
        # What happens by then may still change something, however quiet it is before.
        self.horizon_s = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._hub = getcurrent()
        self._actors: list[greenlet] = []
        self._listeners: list[Waiter] = []
        self.tracing = trace
        self.trace: list[str] = []

    def note(self, who: str, what: str, *details: object) -> None:
        """Write down what happens, where somebody wants to read it."""
        if self.tracing:
            said = " ".join(str(detail) for detail in details)
            self.trace.append(f"{self.now_s:10.4f} {who:<10} {what} {said}".rstrip())

    def after(self, delay_s: float, call: Callable[[], object]) -> None:
        """Call something later."""
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._count), call))

    def later(self, delay_s: float, call: Callable[[], object]) -> None:
        """Call something later that a run must not end before."""
        self.horizon_s = max(self.horizon_s, self.now_s + delay_s)
        self.after(delay_s, call)

    def spawn(self, body: Callable[[], None]) -> None:
        """Start an actor."""
        actor = greenlet(body, parent=self._hub)
        self._actors.append(actor)
        self.after(0.0, actor.switch)

    def sleep(self, delay_s: float) -> None:
        """Let the calling actor give way for a while."""
        self.after(delay_s, Waiter().wake)
        self._hub.switch()

    def listen(self, timeout_s: float) -> None:
        """Let the calling actor give way until something is told, or time is up."""
        waiter = Waiter()
        self._listeners.append(waiter)
        self.after(timeout_s, waiter.wake)
        self._hub.switch()

    def tell(self) -> None:
        """Wake all who listen, each a little later."""
        listeners, self._listeners = self._listeners, []
        for waiter in listeners:
            self.after(self.draw.random() * 0.004, waiter.wake)

    def run(self, done: Callable[[], bool], deadline_s: float) -> None:
        """Let events happen until ``done``.

        Raises:
            StuckError: If the virtual clock passes ``deadline_s`` before.

        """
        while not done():
            if not self._events or self.now_s > deadline_s:
                message = f"the run must end by {deadline_s:g} s of its time"
                raise StuckError(message)
            self.now_s, _, call = heapq.heappop(self._events)
            call()

    def close(self) -> None:
        """End all actors that still wait."""
        for actor in self._actors:
            if not actor.dead:
                actor.throw()
