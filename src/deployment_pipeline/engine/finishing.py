"""A change that was begun is not cancelled with its caller: it runs to its end."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Finishing:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self, change: Coroutine[Any, Any, T]) -> T:
        """Run a change to its end even if the caller leaves."""
        task = asyncio.create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return await asyncio.shield(task)

    def _over(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody did, nobody needs it

    async def close(self) -> None:
        """Wait for the changes under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)
