"""Plans as plain data, and JSON that is equal for equal content."""

from __future__ import annotations

import dataclasses
import json

from headrace.features.expressions import Expression, to_data


def canonical_json(content: object) -> str:
    """Return JSON that is equal for equal content: sorted keys, no spaces, shortest numbers."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def encode(value: object) -> object:
    """Return a plan, or a part of one, as dicts, lists and plain values."""
    if isinstance(value, Expression):
        return to_data(value)
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value
