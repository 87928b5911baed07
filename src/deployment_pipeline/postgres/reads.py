"""What can be read: one statement each, so what belongs together is of one snapshot.

A list is cut by bytes where it is read: rows may have 80 KiB, and a page of a thousand would fill this
process for an answer that must be cut in any case.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

from deployment_pipeline import call
from deployment_pipeline.call import Names
from deployment_pipeline.fields import MAX_PAGE_BYTES
from deployment_pipeline.model import (
    Deployment,
    HistoryFilter,
    Installation,
    LoggedEvent,
    Part,
    Pipeline,
    PipelineState,
    StageState,
)
from deployment_pipeline.postgres.selects import (
    DEPLOYMENT_EVENTS,
    FILTERED_HISTORY,
    GET_DEPLOYMENT,
    GET_PIPELINE,
    HISTORY,
    INSTALLATION,
    LIST_PIPELINES,
    PIPELINE_EVENTS,
    PIPELINE_OF,
    STATE,
)
from deployment_pipeline.postgres.shapes import EVENT, PIPELINE, QUEUEABLE, STAGE_STATE, Column
from deployment_pipeline.postgres.statements import Statement, Statements, Values
from deployment_pipeline.refusals import Overloaded

# Longer pages are read alone: a batch of them would hold up the event loop while its rows are loaded.
ROWS_TOGETHER = 100
# So are those with more bytes than that.
BYTES_TOGETHER = 128 * 1024
# How many long reads a process makes at once: they fill its memory, and keep Postgres from serving others.
LONG_READS = 1
_NUMBER = Column[int | None]()
_TEXT = Column[str | None]()


class Reads:
    """Each raises StoreUnavailable or Overloaded."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self._long = asyncio.Semaphore(LONG_READS)

    async def installation(self) -> Installation:
        [(id, key, min_level)] = await self._statements.read(INSTALLATION, {}, alone=True)
        return Installation(id, key.bytes, min_level)

    async def min_level(self) -> int:
        return (await self.installation()).min_level

    async def pipeline(self, name: str) -> Pipeline | None:
        rows = await self._statements.read(GET_PIPELINE, {"name": name})
        return PIPELINE.read(iter(rows[0])) if rows else None

    async def pipelines(self, names: Names, after: str, most: int) -> Part[Pipeline]:
        """In the order of their names, those after that name. names: ranges without an overlap."""
        values = {
            "lows": [low for low, _ in names],
            "highs": [high for _, high in names],
            "after": after,
            "most": most + 1,
            "bytes": MAX_PAGE_BYTES,
        }
        async with self._turn(most):
            rows = await self._statements.read(LIST_PIPELINES, values, alone=True)
        read = [(PIPELINE.read(row), _NUMBER.read(row)) for row in map(iter, rows)]
        items = [pipeline for pipeline, _ in read[:most] if pipeline]
        return Part(items, items[-1].name if read and (read[0][1] or 0) > len(items) else None)

    async def pipeline_of(self, id: UUID) -> str | None:
        """The name of a deployment's pipeline."""
        rows = await self._statements.read(PIPELINE_OF, {"id": id})
        return rows[0][0] if rows else None

    async def deployment(self, id: UUID) -> Deployment | None:
        rows = await self._statements.read(GET_DEPLOYMENT, {"id": id})
        return QUEUEABLE.read(iter(rows[0])) if rows else None

    async def history(
        self, pipeline: str, where: HistoryFilter, before: int, most: int
    ) -> Part[Deployment] | None:
        """Newest first, below the seq `before`; the list goes on below the seq `next`. None: there is no such
        pipeline."""
        values: dict[str, Any] = {
            "pipeline": pipeline,
            "before": before,
            "most": most + 1,
            "bytes": BYTES_TOGETHER,
        }
        statement = HISTORY
        if where != HistoryFilter():
            statement = FILTERED_HISTORY
            values["statuses"] = sorted(set(where.statuses)) or None
            values["reached"] = where.reached_stage or None
            values["completed"] = where.completed_stage or None
        if most <= ROWS_TOGETHER and not (where.reached_stage or where.completed_stage):
            rows = await self._statements.read(statement, values, alone=statement is FILTERED_HISTORY)
            part = _history_part(rows, most)
            if part is None or part.next is None or len(part.items) == most:
                return part
        values["bytes"] = MAX_PAGE_BYTES
        async with self._turn(None):
            return _history_part(await self._statements.read(statement, values, alone=True), most)

    async def state(self, name: str, most: int) -> PipelineState | None:
        """most: how many of those that wait."""
        values = {"name": name, "most": most, "bytes": MAX_PAGE_BYTES}
        async with self._turn(most):
            rows = await self._statements.read(STATE, values, alone=True)
        pipeline: Pipeline | None = None
        active: Deployment | None = None
        pending_count = 0
        queue: list[Deployment] = []
        stages: list[StageState] = []
        for row in map(iter, rows):
            kind, place, stage = _TEXT.read(row), _NUMBER.read(row), STAGE_STATE.read(row)
            whole, deployment = PIPELINE.read(row), QUEUEABLE.read(row)
            if kind == "PIPELINE":
                pipeline, pending_count = whole, place or 0
            elif stage:
                stages.append(stage)
            elif kind == "ACTIVE":
                active = deployment
            elif deployment:
                queue.append(deployment)
        return PipelineState(pipeline, active, queue, pending_count, stages) if pipeline else None

    async def pipeline_events(self, name: str, after: int, most: int) -> Part[LoggedEvent]:
        """Oldest first, those with an event_no above `after`."""
        return await self._events(PIPELINE_EVENTS, {"name": name, "after": after, "most": most + 1}, most)

    async def deployment_events(self, id: UUID, after: int, most: int) -> Part[LoggedEvent]:
        """Like `pipeline_events`."""
        return await self._events(DEPLOYMENT_EVENTS, {"id": id, "after": after, "most": most + 1}, most)

    async def _events(self, statement: Statement, values: Values, most: int) -> Part[LoggedEvent]:
        async with self._turn(most):
            rows = await self._statements.read(statement, values, alone=True)
        items = [event for row in rows[:most] if (event := EVENT.read(iter(row)))]
        return Part(items, items[-1].event_no if len(rows) > most else None)

    @contextlib.asynccontextmanager
    async def _turn(self, most: int | None) -> AsyncIterator[None]:
        """To read so many rows; None: to read for long. A short read waits for nobody."""
        if most is not None and most <= ROWS_TOGETHER:
            yield
            return
        try:
            async with asyncio.timeout(call.patience()):
                await self._long.acquire()
        except TimeoutError as error:
            raise Overloaded from error
        try:
            yield
        finally:
            self._long.release()


def _history_part(rows: Sequence[Any], most: int) -> Part[Deployment] | None:
    if not rows:
        return None
    read = [(QUEUEABLE.read(row), _NUMBER.read(row), _NUMBER.read(row)) for row in map(iter, rows)]
    items = [deployment for deployment, _, _ in read[:most] if deployment]
    _, found, stopped_at = read[0]
    if found and found > len(items):
        return Part(items, items[-1].seq)
    return Part(items, stopped_at)
