"""The context of the call being served: until when it must have its answer, and whether it is a repeat.

`edge.calls` sets it; whoever waits for something (a connection, a row lock) asks how long it may.
"""

import asyncio
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

# A call without a deadline gets this many seconds, and no call gets more: it must end within 15.
LONGEST_CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Call:
    ends_at: float  # on the monotonic clock
    is_marked_repeat: bool


_current: ContextVar[_Call] = ContextVar("call")


def begin(seconds: float | None, *, is_marked_repeat: bool = False) -> None:
    """seconds: what its caller allows (None: no limit); LONGEST_CALL_SECONDS at most."""
    allowed = LONGEST_CALL_SECONDS if seconds is None else min(seconds, LONGEST_CALL_SECONDS)
    _current.set(_Call(time.monotonic() + allowed, is_marked_repeat))


def ends_at() -> float:
    """On the monotonic clock. Outside a call: LONGEST_CALL_SECONDS from now."""
    current = _current.get(None)
    return time.monotonic() + LONGEST_CALL_SECONDS if current is None else current.ends_at


def remaining() -> float:
    """Seconds left, at least 0."""
    return max(0.0, ends_at() - time.monotonic())


def is_marked_repeat() -> bool:
    """Whether a proxy or client library says that it sent this call before."""
    current = _current.get(None)
    return current is not None and current.is_marked_repeat


def limit(waiting: "asyncio.Future[Any]", seconds: float) -> asyncio.TimerHandle:
    """End a wait with TimeoutError after that time. Like asyncio.timeout, at a third of its price; cancel the
    handle when the wait has ended."""
    return asyncio.get_running_loop().call_later(seconds, _give_up, waiting)


def _give_up(waiting: "asyncio.Future[Any]") -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())
