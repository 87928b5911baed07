"""Until when the call being served must have its answer.

`Calls` sets it; whoever waits for something (a connection, a row lock) asks how long it may.
"""

import asyncio
import time
from contextvars import ContextVar
from typing import Any

# A call without a deadline gets this many seconds, and no call gets more: it must end within 15.
LONGEST_CALL_SECONDS = 10.0

_ends_at: ContextVar[float] = ContextVar("deadline")


def start(seconds: float | None) -> None:
    """Begin a call's time: what its caller allows (None: no limit), LONGEST_CALL_SECONDS at most."""
    allowed = LONGEST_CALL_SECONDS if seconds is None else min(seconds, LONGEST_CALL_SECONDS)
    _ends_at.set(time.monotonic() + allowed)


def ends_at() -> float:
    """On the monotonic clock. Outside a call: LONGEST_CALL_SECONDS from now."""
    ends_at = _ends_at.get(None)
    return time.monotonic() + LONGEST_CALL_SECONDS if ends_at is None else ends_at


def remaining() -> float:
    """Seconds left, at least 0."""
    return max(0.0, ends_at() - time.monotonic())


def limit(waiting: "asyncio.Future[Any]", seconds: float) -> asyncio.TimerHandle:
    """Ends with TimeoutError what is not done by then. As asyncio.timeout, at a third of its price; cancel it
    when the wait is over."""
    return asyncio.get_running_loop().call_later(seconds, _give_up, waiting)


def _give_up(waiting: "asyncio.Future[Any]") -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())
