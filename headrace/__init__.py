"""The public face of Headrace; names load on first use so that ``import headrace`` stays light.

``import headrace as hr`` and write ``hr.Source``, ``hr.FeatureView``, ``hr.Pipeline``, … in a
project's ``definitions.py``; ``hr.history`` and ``hr.load`` are for notebooks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.features.definitions import (
        Entity,
        FeatureView,
        Label,
        LightGBM,
        Pipeline,
        Source,
        count,
        last,
        mean,
        ratio,
    )
    from headrace.features.definitions import max_ as max  # noqa: A004 - the API's own name
    from headrace.features.definitions import min_ as min  # noqa: A004 - the API's own name
    from headrace.features.definitions import sum_ as sum  # noqa: A004 - the API's own name
    from headrace.features.formulas import absolute as abs  # noqa: A004 - the API's own name
    from headrace.features.formulas import (
        col,
        feature,
        floor,
        hour,
        is_null,
        maximum,
        minimum,
        weekday,
        where,
    )
    from headrace.features.project import load_project as load
    from headrace.features.store.reader import online, online_reader
    from headrace.lake.history import history
    from headrace.lake.query import sql

_DEFINITIONS = "headrace.features.definitions"
_FORMULAS = "headrace.features.formulas"

# Public name: module and the name there (it differs where Python has a function of that name).
_PLACES = {
    "Entity": (_DEFINITIONS, "Entity"),
    "FeatureView": (_DEFINITIONS, "FeatureView"),
    "Label": (_DEFINITIONS, "Label"),
    "LightGBM": (_DEFINITIONS, "LightGBM"),
    "Pipeline": (_DEFINITIONS, "Pipeline"),
    "Source": (_DEFINITIONS, "Source"),
    "abs": (_FORMULAS, "absolute"),
    "col": (_FORMULAS, "col"),
    "count": (_DEFINITIONS, "count"),
    "feature": (_FORMULAS, "feature"),
    "floor": (_FORMULAS, "floor"),
    "history": ("headrace.lake.history", "history"),
    "hour": (_FORMULAS, "hour"),
    "is_null": (_FORMULAS, "is_null"),
    "last": (_DEFINITIONS, "last"),
    "load": ("headrace.features.project", "load_project"),
    "max": (_DEFINITIONS, "max_"),
    "maximum": (_FORMULAS, "maximum"),
    "mean": (_DEFINITIONS, "mean"),
    "min": (_DEFINITIONS, "min_"),
    "minimum": (_FORMULAS, "minimum"),
    "online": ("headrace.features.store.reader", "online"),
    "online_reader": ("headrace.features.store.reader", "online_reader"),
    "ratio": (_DEFINITIONS, "ratio"),
    "sql": ("headrace.lake.query", "sql"),
    "sum": (_DEFINITIONS, "sum_"),
    "weekday": (_FORMULAS, "weekday"),
    "where": (_FORMULAS, "where"),
}

__all__ = [
    "Entity",
    "FeatureView",
    "Label",
    "LightGBM",
    "Pipeline",
    "Source",
    "abs",
    "col",
    "count",
    "feature",
    "floor",
    "history",
    "hour",
    "is_null",
    "last",
    "load",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "online",
    "online_reader",
    "ratio",
    "sql",
    "sum",
    "weekday",
    "where",
]


def __getattr__(name: str) -> object:
    """Load a public name's module (PEP 562)."""
    if name not in _PLACES:
        import difflib

        near = difflib.get_close_matches(name, _PLACES, n=1)
        hint = f"; did you mean 'hr.{near[0]}'?" if near else ""
        message = f"module 'headrace' has no attribute {name!r}{hint}"
        raise AttributeError(message)
    module, attribute = _PLACES[name]
    value: object = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
