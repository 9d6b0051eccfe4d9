"""Logs: event names with keys and values, for people on a terminal, else as JSON lines."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor


def configure(*, level: str = "info", as_json: bool | None = None) -> None:
    """Set up logging for this process, once, at its start.

    Args:
        level: The least level that is written.
        as_json: Whether to write JSON lines; None: unless stderr is a terminal.

    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    if as_json is None:
        as_json = not sys.stderr.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer()]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lossy(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    # Libraries (librdkafka, Faust, uvicorn) write to the standard library's loggers.
    logging.basicConfig(
        level=max(threshold, logging.WARNING),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        force=True,
    )
    atexit.register(_drop_unwritten)


def _drop_unwritten() -> None:
    """Lose what cannot be written, or it would be the process's exit code."""
    try:
        sys.stderr.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


class _Lossy:
    """A stream that passes over what it cannot write: a log on a full disk ends no thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of a part of the program."""
    return cast("FilteringBoundLogger", structlog.get_logger(module=name))
