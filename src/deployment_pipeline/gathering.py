"""Concurrent calls of one kind share a round trip.

A call that finds nothing under way is sent at the end of the current step of the event loop, together with
whatever else came in that step. While a batch is under way, the next one collects. It is sent when nothing is
under way any more, or when it has grown to CROWD times what is: a busy store gets a few large batches, and
one round trip that hangs does not hold up everybody. There is no timer.

gRPC takes several steps of the event loop to hand over a call, and a store answers within two or three. To
keep busy callers from going one by one, a round trip that had company counts as under way until nobody has
come for QUIET_STEPS, or for STEPS at most. A lone call waits for nothing.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

CROWD = 4
QUIET_STEPS = 16
STEPS = 128

Q = TypeVar("Q")
A = TypeVar("A")


class Gathering(Generic[Q, A]):
    def __init__(self, send: Callable[[Sequence[Q]], Awaitable[Sequence[A | Exception]]], most: int) -> None:
        """send: answers each question of a batch, in order, with its own answer or error; what it raises is
        the error of all of them. most: how many make a batch at most."""
        self._send = send
        self._most = most
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._under_way = 0  # questions
        self._tasks: set[asyncio.Task[None]] = set()
        self._due = False

    def ask(self, question: Q) -> "asyncio.Future[A]":
        """The answer to come. Cancelled before it is sent, a question is not sent."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        self._look()
        return answer

    def _look(self) -> None:
        if not self._due and len(self._waiting) >= min(CROWD * self._under_way, self._most):
            self._due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._due = False
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        while self._waiting and len(batch) < self._most:
            place = self._waiting.popleft()
            if not place[1].done():
                batch.append(place)
        if batch:
            self._under_way += len(batch)
            task = asyncio.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._waiting:
            self._look()

    async def _run(self, batch: Sequence[tuple[Q, "asyncio.Future[A]"]]) -> None:
        answers: Sequence[A | Exception]
        try:
            answers = await self._send([question for question, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        for (_, waiting), answer in zip(batch, answers, strict=True):
            if waiting.done():  # its caller has left
                continue
            if isinstance(answer, Exception):
                waiting.set_exception(answer)
                waiting.exception()  # its caller may leave at this very moment, and nobody look at it
            else:
                waiting.set_result(answer)
        if len(batch) > 1 or self._waiting:
            await self._quiet()
        self._under_way -= len(batch)
        if self._waiting:
            self._look()

    async def _quiet(self) -> None:
        """Until nobody has come for QUIET_STEPS, or for STEPS."""
        quiet = 0
        for _ in range(STEPS):
            known = len(self._waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == known else 0
            if quiet == QUIET_STEPS:
                return
