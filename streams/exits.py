"""Where a stage's events go: on to the next entity's stage, or out as scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from headrace.runtime.errors import explain
from headrace.streams.errors import CutOverError
from headrace.streams.outputs import OutputWriter
from headrace.streams.rekey import LaneSender, hop_to

if TYPE_CHECKING:
    from headrace.features.plan import PipelinePlan
    from headrace.streams.batch import Outputs
    from headrace.streams.context import ProcessorContext
    from headrace.streams.rekey import StreamRows


START_HINT = "there is nothing left to prepare: the worker reads the log itself"


class Onward(NamedTuple):
    """Rows to hand on, their positions in the lane, and how far it has come with them.

    ``again``: there are none, and all it says is that the lane is still at its end.
    """

    rows: StreamRows | None
    position: np.ndarray | None
    last: int
    watermark_ms: int
    at_end: bool
    opening: bool
    again: bool = False


class Exit(Protocol):
    """Where a stage's events go: to the next stage, or to be scored."""

    @property
    def topic(self) -> str | None:
        """The re-key topic that they go to, None where they go no further."""
        ...

    def write(self, onward: Onward, outputs: Outputs) -> None:
        """Add to ``outputs`` what the rows cause."""
        ...

    def begin(self) -> None:
        """Remember the state, for ``abort``."""
        ...

    def commit(self) -> None:
        """Forget what ``begin`` remembered."""
        ...

    def abort(self) -> None:
        """Go back to the state at ``begin``."""
        ...


class HopExit:
    """Hands events on to the next stage."""

    def __init__(self, sender: LaneSender) -> None:
        """Send through ``sender``."""
        self._sender = sender
        self.begin, self.commit, self.abort = sender.begin, sender.commit, sender.abort

    @property
    def topic(self) -> str:
        """The next stage's topic."""
        return self._sender.hop.topic

    def write(self, onward: Onward, outputs: Outputs) -> None:
        """Add to ``outputs`` the messages for the next stage."""
        if onward.again:
            outputs.single += self._sender.say_again(onward.last, onward.watermark_ms)
            return
        outputs.single += self._sender.send(
            onward.rows,
            onward.position,
            onward.last,
            onward.watermark_ms,
            at_end=onward.at_end,
            opening=onward.opening,
        )


class ScoreExit:
    """Scores events and writes their predictions and snapshots; keeps no state."""

    topic = None

    def __init__(self, writer: OutputWriter) -> None:
        """Write through ``writer``."""
        self._writer = writer

    def write(self, onward: Onward, outputs: Outputs) -> None:
        """Add to ``outputs`` a prediction and a snapshot for each row that is not silent."""
        rows = onward.rows
        if rows is not None and rows.silent.any():
            rows = rows.take(np.flatnonzero(~rows.silent))
        if rows is not None and len(rows):
            self._writer.write(rows, outputs)

    def begin(self) -> None:
        """Do nothing."""

    def commit(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


class SilentExit(ScoreExit):
    """Takes rows that others have scored, and scores none."""

    def __init__(self) -> None:
        """Write nothing."""

    def write(self, onward: Onward, outputs: Outputs) -> None:
        """See that all rows are silent.

        Raises:
            CutOverError: If not: workers of these definitions have begun to score.

        """
        del outputs
        if onward.rows is not None and not onward.rows.silent.all():
            rule = "be made ready before a worker of theirs starts"
            got = "a row that such a worker has sent"
            raise CutOverError(explain("new definitions", rule, got, "a re-key topic", START_HINT))


def exit_of(
    plan: PipelinePlan, stage_index: int, partition: int, context: ProcessorContext
) -> Exit:
    """Return where events go from ``partition`` of a stage."""
    if context.exit is not None:
        return context.exit(stage_index, partition)
    following = stage_index + 1
    if following == len(plan.stages) and not context.scores:
        return SilentExit()
    if following == len(plan.stages):
        return ScoreExit(OutputWriter(plan, context))
    inputs = plan.stages[following].inputs
    scored = next(index for index, stage_input in enumerate(inputs) if stage_input.scored)
    return HopExit(LaneSender(hop_to(plan, following, scored), partition))
