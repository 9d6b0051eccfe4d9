"""A project with a registered model, its profile, and a lake of snapshots and predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from headrace.drift.profile import DAY_MS, encode_profile, make_profile
from headrace.lake.tables import RECORD_FIELDS
from headrace.scoring.artefact import Canary, write_artefact
from headrace.scoring.scorer import FeatureColumn
from headrace.training.registry import FileRegistry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headrace.training.registry import RegistryEntry

NAMES = ("amount", "views__count_1d", "during_night")
DTYPES = ("float64", "int64", "int64")
#: A Monday.
START_MS = 1_767_571_200_000
FINGERPRINT = "0123456789abcdef"

_DEFINITIONS = """
import headrace as hr

orders = hr.Source("orders", key="customer", event_time="event_time", event_id="order_id")
customer = hr.Entity("customer", key="customer")
views = hr.FeatureView("views", entity=customer, source=orders, features=[hr.count(over="1d")])
shop = hr.Pipeline("shop", source=orders, views=[views], request={"amount": hr.col("amount")})
"""
_SCHEMA = """
{"type": "record", "name": "Order", "fields": [
 {"name": "order_id", "type": "string"}, {"name": "customer", "type": "string"},
 {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
 {"name": "amount", "type": "double"}]}
"""


def ordinary(rows: int, seed: int) -> np.ndarray:
    """Return vectors of an ordinary time, one a row, in the order of ``NAMES``."""
    random = np.random.default_rng(seed)
    return np.column_stack(
        [
            np.round(random.lognormal(3.5, 0.7, rows), 2),
            1 + random.poisson(3, rows),
            random.random(rows) < 0.2,
        ]
    ).astype(np.float64)


def scores(rows: int, seed: int) -> np.ndarray:
    """Return scores of an ordinary time."""
    return np.random.default_rng(seed).beta(1, 20, rows)


def times(rows: int, days: int, start_ms: int = START_MS) -> np.ndarray:
    """Return event times spread over some days."""
    return start_ms + np.arange(rows) * days * DAY_MS // rows


def make_project(folder: Path, settings: str = "") -> Path:
    """Write a project without data; without ``settings`` nothing of it runs anywhere."""
    (folder / "schemas").mkdir(parents=True)
    (folder / "headrace.yaml").write_text(settings or "project: shop\n")
    (folder / "definitions.py").write_text(_DEFINITIONS)
    (folder / "schemas" / "orders.avsc").write_text(_SCHEMA)
    return folder


def register(folder: Path, *, profile: bool = True, model: str = "shop") -> RegistryEntry:
    """Register a model that learned from two ordinary weeks before ``START_MS``."""
    rows = 20_000
    when = times(rows, 14, START_MS - 21 * DAY_MS)
    made = make_profile(NAMES, ordinary(rows, 1), when, scores(rows, 2), when)
    draft = folder / "draft"
    write_artefact(
        draft,
        b"tree\nnobody loads it here\n",
        model=model,
        pipeline="shop",
        framework_version="4.7.0",
        columns=[FeatureColumn(*column) for column in zip(NAMES, DTYPES, strict=True)],
        fingerprint=FINGERPRINT,
        training_set_id="t",
        created_at_ms=0,
        canary=Canary(np.zeros((1, 3)), np.zeros(1)),
        metrics={},
        parameters={},
        profile_json=encode_profile(made) if profile else None,
    )
    entry = FileRegistry(folder / "models").add(draft)
    for path in draft.iterdir():
        path.unlink()
    draft.rmdir()
    return entry


def append(
    folder: Path,
    vector: np.ndarray,
    event_time_ms: np.ndarray,
    given: np.ndarray | None = None,
    **changes: str,
) -> None:
    """Append snapshots to the project's lake, and predictions where there are scores."""
    columns = {
        name: pa.array(vector[:, index], pa.float64(), from_pandas=True).cast(dtype)
        for index, (name, dtype) in enumerate(zip(NAMES, DTYPES, strict=True))
    }
    said = {"fingerprint": FINGERPRINT, "model": "shop", "model_version": "1", "role": "champion"}
    said |= changes
    _append(folder, "shop_snapshots", event_time_ms, said, columns, ("fingerprint",))
    if given is not None:
        scored = {"score": pa.array(given, from_pandas=True)}
        _append(folder, "shop_predictions", event_time_ms, said, scored, tuple(said))


def _append(
    folder: Path,
    name: str,
    event_time_ms: np.ndarray,
    said: Mapping[str, str],
    columns: Mapping[str, pa.Array],
    texts: tuple[str, ...],
) -> None:
    rows = len(event_time_ms)
    when = pa.array(event_time_ms * 1000).cast(pa.timestamp("us", "UTC"))
    record = [
        pa.array(["t"] * rows),
        pa.array([0] * rows, pa.int32()),
        pa.array(np.arange(rows)),
        when,
    ]
    table = pa.table(
        {
            "event_time": when,
            **{text: pa.array([said[text]] * rows) for text in texts},
            **columns,
            **dict(zip(RECORD_FIELDS.names, record, strict=True)),
        }
    )
    write_deltalake(str(folder / ".headrace" / "lake" / name), table, mode="append")
