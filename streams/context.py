"""What the processors of one pipeline are given from outside, as ports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from headrace.features.plan import SourcePlan
    from headrace.features.store.views import OnlineEntity
    from headrace.schemas.codec import Decoded
    from headrace.streams.exits import Exit


class Decoder(Protocol):
    """What ``headrace.schemas.wire.WireDecoder`` does."""

    def decode(self, values: list[bytes | None], max_record_bytes: int) -> Decoded:
        """Decode Kafka values in Confluent's wire format."""
        ...


class RegisteredSchema(Protocol):
    """A schema and its id in the registry; ``headrace.schemas.codec.RecordEncoder`` is one."""

    schema: str
    schema_id: int


class LiveModel(Protocol):
    """What a stage needs of ``headrace.scoring.scorer.Scorer``."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def version(self) -> str:
        """The model's version in its registry."""
        ...

    @property
    def role(self) -> str:
        """``champion`` for now."""
        ...

    @property
    def revision(self) -> int:
        """Number of the deployment that put the model live."""
        ...

    @property
    def sha256(self) -> str:
        """The hash of the model's manifest (hex)."""
        ...

    def score(self, vector: np.ndarray) -> np.ndarray:
        """Return one score per row of a float64 matrix in the order of the plan's vector."""
        ...


class ModelTable(Protocol):
    """Which model is live; asked once per batch, so that no batch mixes two."""

    def champion(self, pipeline: str) -> LiveModel | None:
        """Return the pipeline's live model, or None."""
        ...


@dataclass(frozen=True, slots=True)
class ProcessorContext:
    """What the processors of one pipeline get from outside.

    Attributes:
        topic_ids: By topic, Kafka's own id of it (base64); of every source of the pipeline.
        partition_counts: By topic, of every topic that the pipeline reads or writes.
        decoder: Makes a decoder for a source's values.
        predictions: Schema of the predictions.
        snapshots: Schema of the snapshots.
        models: Which model is live.
        max_record_bytes: Longer source records are refused.
        app_version: Written into the headers of DLQ records.
        engine: Which build computes; written into the predictions.
        exit: Takes the events of a (stage index, partition) in place of the plan's own way on.
        online: By index of the stage, what it serves online; nothing by default.
        scores: Whether rows that are not silent are scored; else there must be none.

    """

    topic_ids: Mapping[str, str]
    partition_counts: Mapping[str, int]
    decoder: Callable[[SourcePlan], Decoder]
    predictions: RegisteredSchema
    snapshots: RegisteredSchema
    models: ModelTable
    max_record_bytes: int
    app_version: str
    engine: str | None = None
    exit: Callable[[int, int], Exit] | None = None
    online: Mapping[int, OnlineEntity] = field(default_factory=dict)
    scores: bool = True
