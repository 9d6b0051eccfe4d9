"""Deliberate faults in what is simulated: each must be found, or the checks prove nothing."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.simulate.consumer import SimulatedConsumer
from bench.simulate.group import Group
from headrace.streams import transaction
from headrace.streams.checkpoint_feed import CheckpointFeed
from headrace.streams.commit import CheckedProducer
from headrace.streams.committing import Committer
from headrace.streams.handover import HandOver
from headrace.streams.ownership import Ownership
from headrace.streams.positions import OwnedPartition
from headrace.streams.restore import Lineage
from headrace.streams.source import Source
from headrace.streams.tickets import ProcessorTable
from headrace.streams.transaction import ExactlyOnce, TransactionalProducer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_position = OwnedPartition.position
_release = Ownership._release  # noqa: SLF001 -- what is wrong on purpose is inside
_begin = Ownership._begin  # noqa: SLF001
_restore = CheckpointFeed.restore
_usable = Lineage.usable


def _one_too_far(self: OwnedPartition, *, again: bool = False) -> Any:
    made = _position(self, again=again)
    return None if made is None else dataclasses.replace(made, offset=made.offset + 1)


def _keep_state(self: ProcessorTable) -> dict[tuple[str, int], int]:
    for place in self._opened:
        self._undoable(place).commit()
        self._next_offset[place] = self._opened[place]
    starts, self._opened = self._opened, {}
    return starts


def _give_up_at_once(self: Ownership, _consumer: Any, partitions: list[Any]) -> None:
    _release(self, partitions, flush=True)


def _begin_at_once(self: Ownership, started: Sequence[OwnedPartition]) -> None:
    _begin(self, started)
    self.tell_backlogs()


def _publish_at_once(self: CheckpointFeed, kept: Any) -> None:
    if kept.capture is not None and kept.ended and not kept.posted:
        kept.posted = True
        self._writer.publish(kept.capture)


def _usable_at_once(self: Lineage, manifest: Any, place: Any, owned: OwnedPartition) -> str | None:
    believed = copy.copy(owned)
    believed.committed_offset = max(owned.committed_offset, manifest.offset)
    return _usable(self, manifest, place, believed)


def _skip_a_row(self: CheckpointFeed, owned: OwnedPartition, make: Any) -> Any:
    processor = _restore(self, owned, make)
    if owned.next_offset < owned.emit_from:
        owned.next_offset += 1
    return processor


def _same_version(self: OwnedPartition, position: Any) -> None:
    self.committed_offset = position.offset


@dataclass(frozen=True, slots=True)
class Mutation:
    """What is replaced, by name in its class or module, while a seed runs."""

    about: str
    replaced: tuple[tuple[Any, str, Callable[..., Any]], ...]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Have the fault, for a while."""
        right = [(owner, name, vars(owner)[name]) for owner, name, _ in self.replaced]
        for owner, name, wrong in self.replaced:
            setattr(owner, name, wrong)
        try:
            yield
        finally:
            for owner, name, what in right:
                setattr(owner, name, what)


def _mutation(about: str, *replaced: tuple[Any, str, Callable[..., Any]]) -> Mutation:
    return Mutation(about, replaced)


MUTATIONS = {
    "position": _mutation(
        "one more than was done is committed", (OwnedPartition, "position", _one_too_far)
    ),
    "state": _mutation(
        "an abort leaves the state as it is", (ProcessorTable, "abort", _keep_state)
    ),
    "seek": _mutation(
        "after an abort reading goes on where it was",
        (SimulatedConsumer, "seek", lambda _self, _partition: None),
    ),
    "rewind": _mutation(
        "after an abort the old position stays",
        (OwnedPartition, "rewind", lambda _self, _offset: None),
    ),
    "offsets": _mutation(
        "a transaction goes without its offsets",
        (TransactionalProducer, "send_offsets", lambda _self, *_: True),
    ),
    "unanswered-aborted": _mutation(
        "a commit without an answer is taken for aborted",
        (ExactlyOnce, "_find_out", lambda self, _positions: bool(self._renew())),
    ),
    "unanswered-committed": _mutation(
        "a commit without an answer is taken for done",
        (ExactlyOnce, "_find_out", lambda self, _positions: not self._renew()),
    ),
    "version": _mutation(
        "transactions are not counted", (OwnedPartition, "committed", _same_version)
    ),
    "late-requests": _mutation(
        "an old request may meet the next transaction",
        (ExactlyOnce, "_had_troubles", lambda _self, _producer: False),
    ),
    "fences": _mutation(
        "a worker that the group has given up may still commit",
        (Group, "is_valid", lambda _self, _name, _generation: True),
        (transaction, "fence_dead", lambda *_: None),
    ),
    "revoke": _mutation(
        "a revoke drops what is under way", (Ownership, "_on_revoke", _give_up_at_once)
    ),
    "doom": _mutation(
        "what is lost is committed all the same",
        (Committer, "doom_open", lambda _self, _partitions, _reason: None),
    ),
    "backlogs": _mutation(
        "tickets are handed over while a commit waits", (Ownership, "_begin", _begin_at_once)
    ),
    "checkpoint-early": _mutation(
        # Either guard alone is enough for the outputs: replay makes the same state again.
        "a checkpoint is made and believed before its rows are committed",
        (CheckpointFeed, "_publish", _publish_at_once),
        (Lineage, "usable", _usable_at_once),
    ),
    "checkpoint-offset": _mutation(
        "a restored state goes on one row too far", (CheckpointFeed, "restore", _skip_a_row)
    ),
    "end": _mutation(
        "the end of a log that has grown since counts as done",
        (HandOver, "holds", lambda _self, _topic, _partition: False),
    ),
    "pause": _mutation(
        "a partition that was lost while it was paused comes back paused",
        (Ownership, "_unpause", lambda _self, _started: None),
    ),
    "poll": _mutation(
        "a callback polls the client that has called it",
        (Source, "_callbacks", lambda _self: contextlib.nullcontext()),
    ),
    "flush": _mutation(
        "offsets are committed before the outputs are there",
        (CheckedProducer, "flush", lambda _self, _timeout_s: True),
    ),
}
