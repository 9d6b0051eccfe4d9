"""Whether the broker answers, and whether a source gets more partitions while it is read.

Keys move then, their state does not.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from headrace.runtime.errors import KafkaUnavailableError
from headrace.runtime.kafka import admin, partition_counts
from headrace.runtime.logging import get_logger
from headrace.streams.companions import Companion
from headrace.streams.errors import PositionError
from headrace.streams.positions import moved_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.streams.batch import Forget, Keep, Look

log = get_logger(__name__)

INTERVAL_S = 5.0
# While the broker does not answer it is asked more often: who waits for it wants to know at once.
AGAIN_S = 0.5
ANSWER_S = 3.0
# A question that the broker does not answer is not waited for at the end.
STOP_BUDGET_S = 1.0


class PartitionWatch(Companion):
    """Asks the broker at an interval, in a thread of its own, and ends the worker's loop."""

    def __init__(
        self,
        client: Mapping[str, Any],
        counts: Mapping[str, int],
        answers: Callable[[bool], None] = lambda _answers: None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Watch topics that had so many partitions when their state was begun.

        ``answers`` is told whether the broker answers, when that changes; at first it does.
        """
        self._answers = answers
        self._admin = admin(client)
        self._counts = dict(counts)
        self._interval_s = interval_s
        self._moved: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="headrace-partitions", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()
        self._thread.join(STOP_BUDGET_S)

    def due(self, room: int) -> Sequence[Look | Forget | Keep]:
        """Hand over nothing.

        Raises:
            PositionError: If a topic has another number of partitions by now.

        """
        del room
        if self._moved is not None:
            raise PositionError(self._moved)
        return ()

    def look(self) -> bool:
        """Ask once and return whether the broker has answered."""
        try:
            found = partition_counts(self._admin, self._counts, ANSWER_S)
        except KafkaUnavailableError as error:
            log.debug("partitions_not_counted", reason=str(error))
            return False
        for topic, now in found.items():
            if now != self._counts[topic]:
                self._moved = moved_keys(topic, self._counts[topic], now)
        return True

    def _watch(self) -> None:
        answered = True
        while not self._stop.wait(self._interval_s if answered else AGAIN_S):
            before, answered = answered, self.look()
            if answered != before:
                log.warning("broker_answers_again" if answered else "broker_does_not_answer")
                self._answers(answered)
            if self._moved is not None:
                return
