"""Requests on their way: calls that have begun, and whose request is not here yet.

A client can open a call and never send its request, or hold back its last byte, and stay connected. gRPC's
core ends such a call only at a deadline that the client itself has set, and hands unary calls to their
handlers with the whole request. So our methods are registered as if they took a stream: a handler begins with
the headers, and reads its one request here, where a late one is given up.
"""

import asyncio
from collections import deque
from typing import Any, NamedTuple, cast

import grpc

from deployment_pipeline.edge.answers import Context
from deployment_pipeline.refusals import InvalidFields, Overloaded, Refusal, Violation

# Enough for 1 MiB on a line of 2 Mbit/s.
REQUEST_SECONDS = 5.0
# Only so many requests are read at a time. One that is not read yet takes up no more than the first window of
# its stream (64 KiB), one that is read up to 1 MiB. Most are here with their headers, and read at once.
MAX_READING = 24
# While connections wait for their turn to be read, the oldest requests make room for them: one for each
# connection, and none before this time.
LATE_SECONDS = 0.1


class Arrivals:
    """Requests that wait to be read take turns by connection, so that a client with many of them delays its
    own. One timer looks after all, while there are any."""

    def __init__(self) -> None:
        self._reading: dict[asyncio.Task[Any], float] = {}  # since when; the oldest first
        self._waiting: dict[asyncio.Task[Any], _Place] = {}
        self._lines: dict[str, deque[asyncio.Task[Any]]] = {}  # of connections, in the order of their turns
        self._timer: asyncio.TimerHandle | None = None

    async def request(self, context: Context) -> Any:
        """The call's request; a Refusal in its place if it was given up. Raises CancelledError if the caller
        has left, or if the transport has refused the request (it was too large)."""
        task, loop = own_task(), asyncio.get_running_loop()
        try:
            if len(self._reading) < MAX_READING:
                self._reading[task] = loop.time()
            else:
                await self._turn(task, context.peer())
            if not self._timer:
                self._timer = loop.call_later(LATE_SECONDS, self._look)
            request: Any = await context.read()
        except asyncio.CancelledError as cancelled:
            if not given_up(task, cancelled):
                raise
            return cancelled.args[0]
        finally:
            self._reading.pop(task, None)
            if self._lines:
                self._next()
        if request is grpc.aio.EOF:
            raise asyncio.CancelledError
        return request

    def give_up(self, refusal: Refusal) -> None:
        """All that are not here yet."""
        for task in (*self._reading, *self._waiting):
            task.cancel(refusal)

    async def _turn(self, task: "asyncio.Task[Any]", connection: str) -> None:
        loop = asyncio.get_running_loop()
        place = self._waiting[task] = _Place(loop.time(), loop.create_future())
        self._lines.setdefault(connection, deque()).append(task)
        try:
            await place.turn
        finally:
            self._waiting.pop(task, None)

    def _next(self) -> None:
        """As many as there is room for."""
        while self._lines and len(self._reading) < MAX_READING:
            connection, line = next(iter(self._lines.items()))
            del self._lines[connection]
            task = line.popleft()
            if line:
                self._lines[connection] = line
            place = self._waiting.pop(task, None)
            if place and not place.turn.done():
                place.turn.set_result(None)
                self._reading[task] = asyncio.get_running_loop().time()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for number, (task, since) in enumerate(self._reading.items()):
            if now - since > REQUEST_SECONDS:
                task.cancel(InvalidFields([Violation("request", "did not arrive in full in time")]))
            elif now - since > LATE_SECONDS and number < len(self._lines):
                task.cancel(Overloaded())
        for task, place in self._waiting.items():
            if now - place.since > REQUEST_SECONDS:
                task.cancel(Overloaded())
        self._timer = loop.call_later(LATE_SECONDS, self._look) if self._reading else None


class _Place(NamedTuple):
    """Of a request that waits to be read."""

    since: float
    turn: "asyncio.Future[None]"


def own_task() -> "asyncio.Task[Any]":
    """The one that runs the call."""
    return cast("asyncio.Task[Any]", asyncio.current_task())


def given_up(task: "asyncio.Task[Any]", cancelled: asyncio.CancelledError) -> bool:
    """Whether it was we who cancelled the task, with a refusal. It then goes on."""
    ours = bool(cancelled.args) and isinstance(cancelled.args[0], Refusal)
    if ours:
        task.uncancel()
    return ours
