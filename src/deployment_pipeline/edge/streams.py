"""The long streams of health and reflection: only so many at a time, and all ended when the server stops."""

import asyncio
import contextlib
from collections import Counter
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
        self._connections: dict[asyncio.Task[Any], str] = {}  # of each stream, oldest first
        self._ended = False

    @contextlib.asynccontextmanager
    async def place(self, context: Context) -> AsyncIterator[None]:
        """Where a stream's handler runs. The caller gets UNAVAILABLE when the server stops, and
        RESOURCE_EXHAUSTED if all places are taken and others make better use of theirs."""
        if self._ended:
            await abort(context, answers.of(ShuttingDown()))
        if len(self._connections) >= self._most and not self._make_room(context.peer()):
            await abort(context, answers.of(Overloaded()))
        task = own_task()
        self._connections[task] = context.peer()
        try:
            yield
        except asyncio.CancelledError as cancelled:
            if not given_up(task, cancelled):
                raise
            await abort(context, answers.of(cancelled.args[0]))
        finally:
            self._connections.pop(task, None)

    def _make_room(self, connection: str) -> bool:
        """End the oldest stream of the connection that has most, unless this one would then have as many: a
        client that takes all places keeps nobody out."""
        counts = Counter(self._connections.values())
        [(greatest, count)] = counts.most_common(1)
        if count <= counts[connection] + 1:
            return False
        task = next(task for task, of in self._connections.items() if of == greatest)
        del self._connections[task]
        task.cancel(Overloaded())
        return True

    def end(self) -> None:
        """All there are; no others begin."""
        self._ended = True
        for task in self._connections:
            task.cancel(ShuttingDown())
