"""The context of the call being served: until when it must have its answer, and which attempt it is.

`edge.calls` sets it; whoever waits for something (a connection, a row lock) asks how long it may.
"""

import asyncio
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from deployment_pipeline.principal import ANONYMOUS, Principal

# A call without a deadline gets this many seconds, and no call gets more: it must end within 15.
LONGEST_CALL_SECONDS = 10.0
# Who waits in vain gives up this long before the caller's time is over, so that the caller hears our reason
# and not its own DEADLINE_EXCEEDED.
SHAVED_SECONDS = 0.04


@dataclass(frozen=True, slots=True)
class Attempt:
    """What proxies and client libraries say of a call that they may send more than once."""

    is_repeat: bool = False  # it is marked as sent before
    id: str = ""  # the same in every attempt; empty: nobody gave one
    trace_id: str = ""


# Ranges of pipelines' names: each from one name, up to another that is not in it.
Names: TypeAlias = Sequence[tuple[str, str]]
# Every name that there can be.
EVERYTHING: Names = (("", "~"),)


class Caller(NamedTuple):
    """Who calls. (A NamedTuple: there is one for every call.)"""

    principal: Principal = ANONYMOUS
    actor: str = ""  # whose change it is: a principal's id; empty: an anonymous caller's
    via: str = ""  # the principal that calls on the actor's behalf; empty: none does
    sees: Names = EVERYTHING  # of which pipelines lists may tell


@dataclass(slots=True)
class _Call:
    ends_at: float  # on the monotonic clock
    attempt: Attempt
    caller: Caller


UNMARKED = Attempt()
NOBODY = Caller()


_current: ContextVar[_Call] = ContextVar("call")


def begin(seconds: float | None, attempt: Attempt = UNMARKED) -> None:
    """seconds: what its caller allows (None: no limit); LONGEST_CALL_SECONDS at most."""
    allowed = LONGEST_CALL_SECONDS if seconds is None else min(seconds, LONGEST_CALL_SECONDS)
    _current.set(_Call(time.monotonic() + allowed, attempt, NOBODY))


def identify(caller: Caller) -> None:
    """Once it is known who calls."""
    _current.get().caller = caller


def ends_at() -> float:
    """On the monotonic clock. Outside a call: LONGEST_CALL_SECONDS from now."""
    current = _current.get(None)
    return time.monotonic() + LONGEST_CALL_SECONDS if current is None else current.ends_at


def remaining() -> float:
    """Seconds left, at least 0."""
    return max(0.0, ends_at() - time.monotonic())


def patience() -> float:
    """For how many seconds the call may wait for something that others have; at least 0."""
    return max(0.0, remaining() - SHAVED_SECONDS)


def attempt() -> Attempt:
    current = _current.get(None)
    return UNMARKED if current is None else current.attempt


def caller() -> Caller:
    current = _current.get(None)
    return NOBODY if current is None else current.caller


def limit(waiting: "asyncio.Future[Any]", seconds: float) -> asyncio.TimerHandle:
    """End a wait with TimeoutError after that time. Like asyncio.timeout, at a third of its price; cancel the
    handle when the wait has ended."""
    return asyncio.get_running_loop().call_later(seconds, _give_up, waiting)


def _give_up(waiting: "asyncio.Future[Any]") -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())
