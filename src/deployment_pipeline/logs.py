"""Log lines: one JSON object each, on standard error. Nobody waits for them.

Whoever collects the lines may stall, and then a write does not return. So lines are queued, and a thread
writes them. A line that finds its queue full, or that cannot be written, is lost and counted; as soon as
writing works again, a line says how many were lost.
"""

import atexit
import contextlib
import json
import logging
import os
import select
import sys
import threading
from collections import Counter, deque
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import Any

import structlog

# How many lines of each kind may wait, in the order in which they are written. Calls are many, and must not
# push out a warning. 4096 lines of calls are a second or two at full speed, and some 2 MiB.
MAX_WAITING: Mapping[str, int] = MappingProxyType({"others": 1024, "calls": 4096})
# Lines of calls that come within this time are written together: waking a thread costs more than encoding a
# line. Others are written at once.
GATHER_SECONDS = 0.05
# A write to a pipe that is no longer than this is never mixed with what other processes write to it.
WRITE_BYTES = select.PIPE_BUF
# For how long the end of the process waits for lines that nobody reads.
END_SECONDS = 1.0

# Without local variables: what is in a request is nobody's business.
_with_exception = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
_encode = json.JSONEncoder(default=repr).encode


class Writer:
    """Lines on their way to a file descriptor, and the thread that writes them.

    It starts with the first line; the end of the process closes it.
    """

    def __init__(self, fd: int, max_waiting: Mapping[str, int] = MAX_WAITING) -> None:
        self._fd = fd
        self._max_waiting = max_waiting
        self._waiting = {kind: deque[str]() for kind in max_waiting}
        self._lost = Counter[str]()
        # Never held while something is written. Reentrant: wherever memory is allocated, a finalizer may run
        # that logs.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._is_idle = True
        self._is_gathering = False
        self._is_closing = False
        self._wake = SimpleQueue[None]()
        self._is_torn = False

    def put(self, line: str, kind: str = "others") -> None:
        """Never blocks. If there is no room, the line is lost, and counted."""
        with self._lock:
            waiting = self._waiting[kind]
            if len(waiting) >= self._max_waiting[kind]:
                self._lost[kind] += 1
                return
            waiting.append(f"{line}\n")
            if self._is_idle or (self._is_gathering and kind != "calls"):
                self._is_idle, self._is_gathering = False, kind == "calls"
                self._rouse()

    def close(self) -> None:
        """Write what is waiting, as far as that is possible in END_SECONDS."""
        self._is_closing, self._is_gathering = True, False
        if self._thread:
            self._wake.put(None)
            self._thread.join(END_SECONDS)

    def _rouse(self) -> None:
        if self._thread:
            self._wake.put(None)
            return
        # A daemon: the end of the process does not wait for it.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._wake.put(None)
        self._thread.start()
        atexit.register(self.close)

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.get()
            if self._is_gathering:
                with contextlib.suppress(Empty):
                    self._wake.get(timeout=GATHER_SECONDS)
            while taken := self._take():
                kind, lines = taken
                self._report_loss()
                if not self._write(lines):
                    with self._lock:
                        self._lost[kind] += len(lines)
        self._report_loss()

    def _take(self) -> tuple[str, list[str]] | None:
        """The lines to write next, and their kind. None if there are none: then the thread is idle."""
        with self._lock:
            for kind, waiting in self._waiting.items():
                if waiting:
                    lines = [waiting.popleft()]
                    size = len(lines[0])
                    while waiting and (size := size + len(waiting[0])) <= WRITE_BYTES:
                        lines.append(waiting.popleft())
                    return kind, lines
            self._is_idle = True
            return None

    def _report_loss(self) -> None:
        with self._lock:
            lost = self._lost.copy()
        if lost and self._write([_line(None, "warning", {"event": "log lines were lost", **lost}) + "\n"]):
            with self._lock:
                self._lost -= lost

    def _write(self, lines: list[str]) -> bool:
        """Whether all of them were written."""
        data = ("\n" * self._is_torn + "".join(lines)).encode(errors="backslashreplace")
        left = memoryview(data)
        try:
            while left:
                left = left[self._write_some(left) :]
        except OSError:
            # A full disk took half a line, perhaps. The next one must not be glued to it.
            self._is_torn |= len(left) < len(data)
            return False
        self._is_torn = False
        return True

    def _write_some(self, data: memoryview) -> int:
        """Returns how many bytes. Raises OSError."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:  # a process that shares the file has made it non-blocking
            select.select([], [self._fd], [])
            return 0


class _Logger:
    """What structlog gives its lines to."""

    def error(self, line: str) -> None:
        _stderr.put(line)

    debug = info = warning = critical = error


_stderr = Writer(2)
_everywhere: dict[str, object] = {}
_ours = logging.getLogger("deployment_pipeline")


def configure(level: str, **everywhere: object) -> None:
    """everywhere: what every line says."""
    threshold = getattr(logging, level.upper())
    _ours.setLevel(threshold)
    _everywhere.update(everywhere)
    structlog.configure(
        processors=[_line],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _Logger(),
        cache_logger_on_first_use=True,
    )
    # What libraries say through the standard library: warnings matter. The pool's do not, which come for
    # every attempt at every connection; readiness says once that Postgres is away.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_fit_to_print)
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[_JsonHandler()])
    # By themselves these would write to sys.stderr, and could wait there for ever.
    logging.captureWarnings(True)
    sys.unraisablehook = threading.excepthook = _unhandled
    sys.excepthook = lambda _, error, __: _log_unhandled(error)


def call(**facts: object) -> None:
    """The line of a call. As structlog would write it, for a third of the price, for every call has one."""
    if _ours.isEnabledFor(logging.INFO):
        _stderr.put(_line(None, "info", {"event": "call", **facts}), "calls")


def announce(event: str, *, level: str = "info", **facts: object) -> None:
    """A line that is written whatever the level is."""
    text(_line(None, level, {"event": event, **facts}))


def text(line: str) -> None:
    """For people: what keeps the program from running."""
    _stderr.put(line)


def _line(logger: object, level: str, event: MutableMapping[str, Any]) -> str:
    """One step instead of structlog's chain."""
    if "exc_info" in event:
        event = _with_exception(logger, level, event)
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    return _encode({**event, **_everywhere, "level": level, "timestamp": f"{now}Z"})


def _unhandled(unhandled: "sys.UnraisableHookArgs | threading.ExceptHookArgs") -> None:
    _log_unhandled(unhandled.exc_value)


def _log_unhandled(error: BaseException | None) -> None:
    structlog.get_logger().error("an exception that nobody handled", exc_info=error)


def _is_fit_to_print(record: logging.LogRecord) -> bool:
    """Not metadata that is no UTF-8, which gRPC writes down as it came, with a traceback: it may be a
    credential, and whoever sends much of it could fill the log and stop the event loop."""
    return not str(record.msg).startswith("Invalid encoding on")


class _JsonHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
        )
