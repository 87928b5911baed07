"""A change that was begun is not cancelled with its caller: it runs to its end."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from deployment_pipeline.errors import Refusal
from deployment_pipeline.model import Change, Deployment, Judged

T = TypeVar("T")


class Changes:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self, change: Coroutine[Any, Any, T]) -> T:
        """Run a change to its end even if the caller leaves."""
        return await asyncio.shield(self.begin(change))

    def begin(self, change: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run a change to its end on its own."""
        task = asyncio.create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody did, nobody needs it

    async def close(self) -> None:
        """Wait for the changes under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def deployment_change(judged: Judged, refusal: Refusal | None) -> Change[Deployment]:
    """What was made. Raises the refusal."""
    if refusal or judged.deployment is None:
        raise refusal or AssertionError(f"{judged.outcome} without a deployment")
    return Change(judged.deployment, judged.outcome == "REPLAYED")
