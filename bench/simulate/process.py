"""A process of the simulation: it may be killed or frozen at any call of a port."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.simulate.chaos import Chaos
    from bench.simulate.world import World

# Of the calls so many let somebody else go first.
GIVE_WAY = 0.25
LATENCY_S = 0.002


class KilledError(BaseException):
    """The process is no more: nothing in it may go on, whatever it catches."""


class Process:
    """One life of a worker."""

    def __init__(self, name: str, world: World, chaos: Chaos) -> None:
        self.name = name
        self.world = world
        self.chaos = chaos
        self.dead = False
        self.frozen_until_s = 0.0
        self.calls = 0

    @property
    def responds(self) -> bool:
        """Whether its background threads run."""
        return not self.dead and self.world.now_s >= self.frozen_until_s

    def step(self, call: str) -> None:
        """Be at a call of a port.

        Raises:
            KilledError: If this is where the process ends.

        """
        self.gate()
        self.calls += 1
        self.chaos.at_call(self, call)
        if self.world.draw.random() < GIVE_WAY:
            self.sleep(self.world.draw.random() * LATENCY_S)
        self.gate()

    def sleep(self, delay_s: float) -> None:
        """Wait."""
        self.world.sleep(delay_s)
        self.gate()

    def listen(self, timeout_s: float) -> None:
        """Wait until something happens at the broker."""
        self.world.listen(timeout_s)
        self.gate()

    def gate(self) -> None:
        """Stand still while frozen.

        Raises:
            KilledError: If the process was killed.

        """
        while not self.dead and self.world.now_s < self.frozen_until_s:
            self.world.sleep(self.frozen_until_s - self.world.now_s)
        if self.dead:
            raise KilledError(self.name)
