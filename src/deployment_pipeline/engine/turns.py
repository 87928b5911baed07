"""One attempt per key at a time; the callers that wait share what it found.

Of many callers with the same key, one leads and the rest wait in line. When its attempt has ended, the first
in line leads the next one. Every caller that was in line *when an attempt began* may share its refusal: the
attempt fell within its own call, so the refusal is as true as one of its own. A herd of a thousand costs two
attempts.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from deployment_pipeline import call

T = TypeVar("T")


class Attempt(Generic[T]):
    """One attempt under way, as the leader's code sees it. Answer once; what is done after the answer still
    belongs to the turn, but only the next in line waits for it. waited: the leader was in line before."""

    def __init__(self, sharers: "deque[_Place]", waited: bool) -> None:
        self.waited = waited
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._sharers = sharers

    def succeed(self, value: T, refusal: Exception | None) -> None:
        """The leader gets the value, the others the refusal; None: they try for themselves."""
        if not self.answer.done():  # its leader has left
            self.answer.set_result(value)
        if refusal:
            self._share(refusal)

    def fail(self, error: BaseException, *, shared: bool) -> None:
        """The leader gets the error; the others too if it is shared, else they try for themselves."""
        if not self.answer.done():
            self.answer.set_exception(error)
        if shared:
            self._share(error)

    def _share(self, error: BaseException) -> None:
        kept: list[_Place] = []
        for place in self._sharers:
            if not place.shares:
                kept.append(place)
            elif not place.turn.done():
                place.turn.set_exception(error)
        self._sharers.clear()
        self._sharers.extend(kept)


class _Place:
    """A place in line. `turn` resolves when it is this caller's turn to lead."""

    def __init__(self, shares: bool) -> None:
        self.shares = shares
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Turns(Generic[T]):
    def __init__(self) -> None:
        self._lines: dict[str, deque[_Place]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(
        self,
        key: str,
        attempt: Callable[[Attempt[T]], Awaitable[None]],
        *,
        shares: bool,
        patience_seconds: float,
    ) -> T:
        """Lead an attempt when it is our turn, or (`shares`) get another's refusal. Once it has begun, an
        attempt is not cancelled with its caller. Raises TimeoutError if our turn did not come in time."""
        if waited := key in self._lines:
            await self._turn(key, shares, patience_seconds)
        # Callers that are in line now may share; those that come later wait in another line.
        sharers = self._lines.get(key, deque())
        self._lines[key] = deque()
        this: Attempt[T] = Attempt(sharers, waited)
        this.answer.add_done_callback(_retrieve)
        task = asyncio.create_task(self._run(key, this, attempt, sharers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await this.answer

    async def _turn(self, key: str, shares: bool, patience_seconds: float) -> None:
        place = _Place(shares)
        self._lines[key].append(place)
        timer = call.limit(place.turn, patience_seconds)
        try:
            await place.turn
        except asyncio.CancelledError:
            if place.turn.done() and not place.turn.cancelled() and not place.turn.exception():
                self._next(key)  # our turn came just as we left
            raise
        finally:
            timer.cancel()

    async def _run(
        self,
        key: str,
        this: Attempt[T],
        attempt: Callable[[Attempt[T]], Awaitable[None]],
        sharers: deque[_Place],
    ) -> None:
        try:
            await attempt(this)
        except Exception as error:
            if this.answer.done():
                raise
            this.fail(error, shared=False)
        finally:
            # Callers that got no share come before those that came later.
            self._lines[key].extendleft(reversed(sharers))
            self._next(key)

    def _next(self, key: str) -> None:
        line = self._lines[key]
        while line:
            turn = line.popleft().turn
            if not turn.done():
                turn.set_result(None)
                return
        del self._lines[key]

    async def drain(self) -> None:
        """Wait until every attempt under way has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def _retrieve(answer: "asyncio.Future[T]") -> None:
    # The leader may have been cancelled: then nobody else looks at the exception.
    if not answer.cancelled():
        answer.exception()
