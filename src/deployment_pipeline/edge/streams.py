"""The long streams of health and reflection: only so many at a time, and all ended when the server stops."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from deployment_pipeline.edge import answers
from deployment_pipeline.edge.answers import Context, abort
from deployment_pipeline.edge.arrivals import given_up, own_task
from deployment_pipeline.refusals import Overloaded, ShuttingDown


class Streams:
    def __init__(self, most: int) -> None:
        """most: how many in this process."""
        self._most = most
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = False

    @contextlib.asynccontextmanager
    async def place(self, context: Context) -> AsyncIterator[None]:
        """Where a stream's handler runs. The caller gets RESOURCE_EXHAUSTED if all places are taken, and
        UNAVAILABLE when the server stops."""
        if self._ended or len(self._tasks) >= self._most:
            await abort(context, answers.of(ShuttingDown() if self._ended else Overloaded()))
        task = own_task()
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError as cancelled:
            if not given_up(task, cancelled):
                raise
            await abort(context, answers.of(ShuttingDown()))
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        """All there are; no others begin."""
        self._ended = True
        for task in self._tasks:
            task.cancel(ShuttingDown())
