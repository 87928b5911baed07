"""What can be read: one statement each, that of a pipeline's state two."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from deployment_pipeline.model import (
    Deployment,
    HistoryFilter,
    Installation,
    LoggedEvent,
    Pipeline,
    PipelineState,
)
from deployment_pipeline.postgres.shapes import COUNT, EVENT, PIPELINE, QUEUEABLE, STAGE_STATE, Shape
from deployment_pipeline.postgres.statements import Statement, Statements

# Longer pages are read alone: a batch of them would hold up the event loop while its rows are loaded.
ROWS_TOGETHER = 100

_DEPLOYMENT = QUEUEABLE.columns("d", waiting="w")
_WAITING = """
    LEFT JOIN LATERAL (
        SELECT * FROM dp_waiting_for(d.pipeline_name, d.seq) WHERE d.status = 'PENDING'
    ) w ON true
"""

INSTALLATION = Statement("SELECT id, page_token_key FROM dp_installation", {})
GET_PIPELINE = Statement(
    f"SELECT {PIPELINE.columns('p')} FROM dp_pipelines p WHERE p.name = q.name", {"name": "text"}
)
LIST_PIPELINES = Statement(
    f"""
    SELECT {PIPELINE.columns("p")} FROM dp_pipelines p WHERE p.name > q.after ORDER BY p.name LIMIT q.most
    """,
    {"after": "text", "most": "integer"},
)
GET_DEPLOYMENT = Statement(
    f"SELECT {_DEPLOYMENT} FROM dp_deployments d {_WAITING} WHERE d.id = q.id", {"id": "uuid"}
)
# One row without a deployment when there is a pipeline and nothing to show; none when there is no pipeline.
HISTORY = Statement(
    f"""
    SELECT {_DEPLOYMENT}
    FROM dp_pipelines p
    LEFT JOIN LATERAL (
        SELECT * FROM dp_deployments d
        WHERE d.pipeline_name = p.name AND d.seq < q.before
          AND (q.statuses IS NULL OR d.status = ANY (q.statuses))
          AND (q.reached IS NULL OR array_position(d.stages, q.reached) <= d.stage_index + 1)
          AND (q.completed IS NULL OR array_position(d.stages, q.completed)
               <= d.stage_index + (d.status = 'COMPLETED')::integer)
        ORDER BY d.seq DESC LIMIT q.most
    ) d ON true {_WAITING}
    WHERE p.name = q.pipeline
    ORDER BY d.seq DESC
    """,
    {
        "pipeline": "text",
        "before": "bigint",
        "most": "integer",
        "statuses": "text[]",
        "reached": "text",
        "completed": "text",
    },
)
# The active deployment and those in line, next to the pipeline; the active one has no place in line.
STATE = Statement(
    f"""
    SELECT {PIPELINE.columns("p")},
           (SELECT count(*) FROM dp_deployments WHERE pipeline_name = p.name AND status = 'PENDING'),
           {_DEPLOYMENT}
    FROM dp_pipelines p LEFT JOIN LATERAL (
        (SELECT * FROM dp_deployments WHERE pipeline_name = p.name AND status = 'IN_PROGRESS')
        UNION ALL
        (SELECT * FROM dp_deployments WHERE pipeline_name = p.name AND status = 'PENDING'
         ORDER BY seq LIMIT q.most)
    ) d ON true {_WAITING}
    WHERE p.name = q.name
    """,
    {"name": "text", "most": "integer"},
)
STAGE_STATES = Statement(
    f"""
    SELECT {STAGE_STATE.columns("s", deployment="d")}
    FROM dp_pipelines p CROSS JOIN LATERAL (
        SELECT s.name, s.n, e.deployment_id, e.created_at AS completed_at
        FROM unnest(p.stages) WITH ORDINALITY s (name, n)
        LEFT JOIN LATERAL (
            SELECT deployment_id, created_at FROM dp_events
            WHERE pipeline_name = p.name AND stage = s.name AND type IN ('ADVANCE', 'COMPLETE')
            ORDER BY event_no DESC LIMIT 1
        ) e ON true
    ) s
    LEFT JOIN dp_deployments d ON d.id = s.deployment_id
    WHERE p.name = q.name ORDER BY s.n
    """,
    {"name": "text"},
)
PIPELINE_EVENTS = Statement(
    f"""
    SELECT {EVENT.columns("e")} FROM dp_events e
    WHERE e.pipeline_name = q.name AND e.event_no > q.after ORDER BY e.event_no LIMIT q.most
    """,
    {"name": "text", "after": "bigint", "most": "integer"},
)
DEPLOYMENT_EVENTS = Statement(
    f"""
    SELECT {EVENT.columns("e")} FROM dp_events e
    WHERE e.deployment_id = q.id AND e.event_no > q.after ORDER BY e.event_no LIMIT q.most
    """,
    {"id": "uuid", "after": "bigint", "most": "integer"},
)


class Reads:
    """Each raises StoreUnavailable or Overloaded."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def installation(self) -> Installation:
        [(id, key)] = await self._statements.read(INSTALLATION, {}, alone=True)
        return Installation(id, key.bytes)

    async def pipeline(self, name: str) -> Pipeline | None:
        found = await self._all(PIPELINE, GET_PIPELINE, {"name": name})
        return found[0] if found else None

    async def pipelines(self, after: str, most: int) -> list[Pipeline]:
        """In the order of their names, those after that name."""
        return await self._all(PIPELINE, LIST_PIPELINES, {"after": after, "most": most}, alone=True)

    async def state(self, name: str, most: int) -> PipelineState | None:
        """most: of those that wait."""
        rows = await self._statements.read(STATE, {"name": name, "most": most}, alone=True)
        read = [(PIPELINE.read(row), COUNT.read(row), QUEUEABLE.read(row)) for row in map(iter, rows)]
        if not read or (pipeline := read[0][0]) is None:
            return None
        deployments = [deployment for _, _, deployment in read if deployment]
        stages = await self._all(STAGE_STATE, STAGE_STATES, {"name": name}, alone=True)
        return PipelineState(
            pipeline,
            next((d for d in deployments if not d.waiting), None),
            sorted((d for d in deployments if d.waiting), key=lambda d: d.seq),
            read[0][1],
            stages,
        )

    async def deployment(self, id: UUID) -> Deployment | None:
        found = await self._all(QUEUEABLE, GET_DEPLOYMENT, {"id": id})
        return found[0] if found else None

    async def history(
        self, pipeline: str, where: HistoryFilter, before: int, most: int
    ) -> list[Deployment] | None:
        """Newest first, those with a seq below `before`. None: there is no such pipeline."""
        values = {
            "pipeline": pipeline,
            "before": before,
            "most": most,
            "statuses": list(where.statuses) or None,
            "reached": where.reached_stage or None,
            "completed": where.completed_stage or None,
        }
        rows = await self._statements.read(HISTORY, values, alone=most > ROWS_TOGETHER)
        if not rows:
            return None
        read = (QUEUEABLE.read(iter(row)) for row in rows)
        return [deployment for deployment in read if deployment]

    async def pipeline_events(self, name: str, after: int, most: int) -> list[LoggedEvent]:
        """Oldest first, those with an event_no above `after`."""
        return await self._all(
            EVENT, PIPELINE_EVENTS, {"name": name, "after": after, "most": most}, alone=True
        )

    async def deployment_events(self, id: UUID, after: int, most: int) -> list[LoggedEvent]:
        """As `pipeline_events`."""
        return await self._all(EVENT, DEPLOYMENT_EVENTS, {"id": id, "after": after, "most": most}, alone=True)

    async def _all(
        self, shape: Shape[Any], statement: Statement, values: Mapping[str, Any], *, alone: bool = False
    ) -> list[Any]:
        rows: Sequence[Any] = await self._statements.read(statement, values, alone=alone)
        return [shape.read(iter(row)) for row in rows]
