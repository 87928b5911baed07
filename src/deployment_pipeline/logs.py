"""Log lines: one JSON object each, on standard error."""

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog

# Without local variables: what is in a request is nobody's business.
_with_exception = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
_encode = json.JSONEncoder(default=repr).encode


class _Stderr:
    """What cannot be written is lost, and no more than that: a change that was made must not fail with its
    line because whoever collected the lines is gone."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Every line is flushed by its end."""


_stderr = _Stderr()
_everywhere: dict[str, object] = {}
_calls: list[str] = []
_ours = logging.getLogger("deployment_pipeline")


def configure(level: str, **everywhere: object) -> None:
    """everywhere: what every line says."""
    threshold = getattr(logging, level.upper())
    _ours.setLevel(threshold)
    _everywhere.update(everywhere)
    structlog.configure(
        processors=[_line],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=_stderr),  # type: ignore[arg-type]  # it does what is used of a file
        cache_logger_on_first_use=True,
    )
    # What libraries say through the standard library: warnings matter. The pool's do not, which come for
    # every attempt at every connection; readiness says once that Postgres is away.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[_JsonHandler()])


def call(**facts: object) -> None:
    """The line of a call. As structlog would write it, for a third of the price, for every call has one; what
    ends in one step of the event loop is written at once."""
    if _ours.isEnabledFor(logging.INFO):
        if not _calls:
            asyncio.get_running_loop().call_soon(_write_calls)
        _calls.append(_line(None, "info", {"event": "call", **facts}) + "\n")


def _write_calls() -> None:
    _stderr.write("".join(_calls))
    _calls.clear()


def _line(logger: object, level: str, event: MutableMapping[str, Any]) -> str:
    """One step instead of structlog's chain."""
    if "exc_info" in event:
        event = _with_exception(logger, level, event)
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    return _encode({**event, **_everywhere, "level": level, "timestamp": f"{now}Z"})


class _JsonHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
        )
