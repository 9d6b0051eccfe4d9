"""What integration tests and `./dev chaos` share; it lies in bench, which tests may import."""

from bench.live import (
    DEFINITIONS,
    PAYMENT,
    SHOP,
    TWO_ENTITIES,
    LiveProject,
    LiveWorker,
    apply,
    make_project,
    payments,
)

__all__ = [
    "DEFINITIONS",
    "PAYMENT",
    "SHOP",
    "TWO_ENTITIES",
    "LiveProject",
    "LiveWorker",
    "apply",
    "make_project",
    "payments",
]
