"""What can go wrong around the stream: every error here stops the worker with a message.

Bad input is no error: it is data that goes to the DLQ with a reason.
"""

from __future__ import annotations

from headrace.runtime.errors import HeadraceError, explain


class StreamError(HeadraceError):
    """The stream cannot go on."""


class DeliveryError(StreamError):
    """The broker refused a message for good, so nothing after it may be committed."""


class PositionError(StreamError):
    """A committed offset does not belong to the topic as it is now."""


class CutOverError(StreamError):
    """Former definitions still run, or have left rows that are not scored."""


class PublishError(StreamError):
    """Events could not be published: unreadable input, or a delivery failure."""


class ReplayError(StreamError):
    """A DLQ record cannot be sent to its source again."""


class LaneError(StreamError):
    """A message of an internal topic does not carry what its sender must write."""


class PartitioningError(StreamError):
    """Records of a source read directly do not lie where its declared partitioner puts them."""


class NotAppliedError(StreamError):
    """The project's plan is not what the infrastructure holds, or a name is not in it."""


class ReceiptError(StreamError):
    """What was recorded of predictions is not what their plan says was written."""


class ErasureError(StreamError):
    """An erasure cannot be read, or not be carried out."""


class IdentityError(StreamError):
    """Another process is the worker that this one was to be."""


class FencedError(StreamError):
    """Another worker of the same name has begun, or the broker has given this one up."""


class UndoneError(StreamError):
    """The open transaction came to nothing: what it changed must be undone, then work goes on."""


class CheckpointError(StreamError):
    """A checkpoint is not as it was written, or cannot be read."""


class RefillError(StreamError):
    """The lake does not hold what a log has lost, or not as it was."""


def fenced(what: str, name: str, found: str) -> FencedError:
    """Return the error of a worker that may not go on: who it is, and what the broker said."""
    return FencedError(
        explain(
            f"{what} {name}",
            "belong to one worker that the broker hears of",
            found,
            "this worker",
            "another worker of this name was started, or this one stood still: it ends",
        )
    )
