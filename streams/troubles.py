"""What Kafka's clients complain of, written down without repeating it.

While a broker is away a client complains many times a second, of one thing in many words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.runtime.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import KafkaError

log = get_logger(__name__)

REPEAT_S = 10.0


class TroubleLog:
    """Writes down a kind of trouble at once, and then, while it lasts, each ten seconds.

    Args:
        event: What the lines are called.
        monotonic_s: The clock.

    """

    def __init__(self, event: str, monotonic_s: Callable[[], float]) -> None:
        self._event = event
        self._monotonic_s = monotonic_s
        self._said_s: dict[int, float] = {}
        self._untold: dict[int, int] = {}

    def __call__(self, error: KafkaError) -> None:
        """Take note of an error; those of one code are the same trouble."""
        kind, now_s = error.code(), self._monotonic_s()
        said_s = self._said_s.get(kind)
        if said_s is not None and now_s - said_s < REPEAT_S:
            self._untold[kind] = self._untold.get(kind, 0) + 1
            return
        self._said_s[kind] = now_s
        log.warning(self._event, error=error.str(), untold=self._untold.pop(kind, 0))
