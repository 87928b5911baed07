"""The only place that speaks SQL.

A change is one call of one function in sql/functions: one round trip, and no row lock is ever held while
this process is elsewhere. The function's outcome comes back as a word with the rows it is about. A read is
one statement, that of a pipeline's state two.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from deployment_pipeline.ids import RequestKey
from deployment_pipeline.model import (
    Deployment,
    HistoryFilter,
    Judged,
    LoggedEvent,
    Pipeline,
    PipelineState,
)
from deployment_pipeline.postgres.connections import Database
from deployment_pipeline.postgres.shapes import (
    DEPLOYMENT_WIDTH,
    PIPELINE_WIDTH,
    WAITING_WIDTH,
    deployment_columns,
    pipeline_columns,
    to_deployment,
    to_event,
    to_pipeline,
    to_stage_state,
    waiting_columns,
)
from deployment_pipeline.postgres.statements import Statement


def _call(function: str, arguments: int, *columns: str) -> str:
    """arguments: beside request_id, digest and for how long to wait, which every function takes."""
    placeholders = ", ".join(["%s"] * (arguments + 3))
    return f"SELECT outcome, {', '.join(columns)} FROM {function}({placeholders})"


def _change(function: str, types: Sequence[str], *columns: str) -> Statement:
    """Of a deployment: it can be made in a batch."""
    call = _call(function, len(types), *columns)
    return Statement(call, *types, "text", "bytea", "integer", waits=True)


# Longer pages are read alone: a batch of them would hold up the event loop while its rows are loaded.
ROWS_TOGETHER = 100

_DEPLOYMENT = deployment_columns("(deployment)")
_PIPELINE = pipeline_columns("(pipeline)")

CREATE_PIPELINE = Statement(_call("dp_create_pipeline", 5, _PIPELINE), waits=True)
UPDATE_PIPELINE = Statement(_call("dp_update_pipeline", 6, _PIPELINE), waits=True)
LOCK_PIPELINE = Statement(_call("dp_lock_pipeline", 4, _PIPELINE), waits=True)
UNLOCK_PIPELINE = Statement(_call("dp_unlock_pipeline", 3, _PIPELINE, _DEPLOYMENT), waits=True)
TRIGGER = _change(
    "dp_trigger",
    ("uuid", "text", "text", "text", "jsonb", "text"),
    *(_DEPLOYMENT, _PIPELINE, waiting_columns("(waiting)")),
)
ADVANCE = _change("dp_advance", ("uuid", "text", "text"), _DEPLOYMENT, "started")
CANCEL = _change("dp_cancel", ("uuid", "text"), _DEPLOYMENT, "started")
ROLLBACK = _change("dp_rollback", ("uuid", "uuid", "text", "text"), _DEPLOYMENT, "started")

PAGE_TOKEN_KEY = Statement("SELECT page_token_key FROM dp_installation")
GET_PIPELINE = Statement(f"SELECT {pipeline_columns('p')} FROM dp_pipelines p WHERE name = %s", "text")
LIST_PIPELINES = Statement(f"""
    SELECT {pipeline_columns("p")} FROM dp_pipelines p WHERE name > %s ORDER BY name LIMIT %s
""")

_WAITING = """
    LEFT JOIN LATERAL (
        SELECT * FROM dp_waiting_for(d.pipeline_name, d.seq) WHERE d.status = 'PENDING'
    ) w ON true
"""
GET_DEPLOYMENT = Statement(
    f"""
    SELECT {deployment_columns("d")}, {waiting_columns("w")} FROM dp_deployments d {_WAITING} WHERE id = %s
    """,
    "uuid",
)
# One row without a deployment when there is a pipeline and nothing to show; none when there is no pipeline.
HISTORY = Statement(
    f"""
    SELECT {deployment_columns("d")}, {waiting_columns("w")}
    FROM (VALUES (%s::text, %s::bigint, %s::integer, %s::text[], %s::text, %s::text))
        q (pipeline, before, most, statuses, reached, completed)
    JOIN dp_pipelines p ON p.name = q.pipeline
    LEFT JOIN LATERAL (
        SELECT * FROM dp_deployments d
        WHERE d.pipeline_name = p.name AND d.seq < q.before
          AND (q.statuses IS NULL OR d.status = ANY (q.statuses))
          AND (q.reached IS NULL OR array_position(d.stages, q.reached) <= d.stage_index + 1)
          AND (q.completed IS NULL OR array_position(d.stages, q.completed)
               <= d.stage_index + (d.status = 'COMPLETED')::integer)
        ORDER BY d.seq DESC LIMIT q.most
    ) d ON true {_WAITING}
    ORDER BY d.seq DESC
    """,
    *("text", "bigint", "integer", "text[]", "text", "text"),
)
# The active deployment and those in line, next to the pipeline; the active one has no place in line.
STATE = Statement(f"""
    SELECT {pipeline_columns("p")},
           (SELECT count(*) FROM dp_deployments WHERE pipeline_name = p.name AND status = 'PENDING'),
           {deployment_columns("d")}, {waiting_columns("w")}
    FROM dp_pipelines p LEFT JOIN LATERAL (
        (SELECT * FROM dp_deployments WHERE pipeline_name = p.name AND status = 'IN_PROGRESS')
        UNION ALL
        (SELECT * FROM dp_deployments WHERE pipeline_name = p.name AND status = 'PENDING'
         ORDER BY seq LIMIT %s)
    ) d ON true {_WAITING}
    WHERE p.name = %s
""")
STAGE_STATES = Statement("""
    SELECT s.name, d.id, d.version, d.seq, e.created_at
    FROM dp_pipelines p CROSS JOIN LATERAL unnest(p.stages) WITH ORDINALITY s (name, n)
    LEFT JOIN LATERAL (
        SELECT deployment_id, created_at FROM dp_events
        WHERE pipeline_name = p.name AND stage = s.name AND type IN ('ADVANCE', 'COMPLETE')
        ORDER BY event_no DESC LIMIT 1
    ) e ON true
    LEFT JOIN dp_deployments d ON d.id = e.deployment_id
    WHERE p.name = %s ORDER BY s.n
""")
# The service's own request ids are nobody's business.
_EVENT = """
    e.pipeline_name, e.event_no, e.type, e.deployment_id, e.stage, e.from_status, e.to_status, e.actor,
    e.reason, CASE WHEN e.request_digest IS NOT NULL THEN e.request_id END, e.created_at
"""
PIPELINE_EVENTS = Statement(f"""
    SELECT {_EVENT} FROM dp_events e
    WHERE pipeline_name = %s AND event_no > %s ORDER BY event_no LIMIT %s
""")
DEPLOYMENT_EVENTS = Statement(f"""
    SELECT {_EVENT} FROM dp_events e
    WHERE deployment_id = %s AND event_no > %s ORDER BY event_no LIMIT %s
""")


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def page_token_key(self) -> bytes:
        """The key that signs page tokens, the same for all replicas."""
        [(key,)] = await self._database.read(PAGE_TOKEN_KEY)
        return UUID(str(key)).bytes

    async def ping(self) -> None:
        """Raises StoreUnavailable if Postgres does not answer, Overloaded if all connections are busy."""
        await self._database.probe()

    # Changes of a pipeline. Each raises OutcomeUnknown, StoreUnavailable or Overloaded, as those below do.

    async def create_pipeline(
        self,
        name: str,
        stages: Sequence[str],
        description: str,
        labels: Mapping[str, str],
        max_pending: int,
        key: RequestKey,
    ) -> Judged:
        values = (name, list(stages), description, dict(labels), max_pending)
        row = await self._database.change(CREATE_PIPELINE, values, key, f"pipeline {name}")
        return Judged(row[0], pipeline=to_pipeline(row[1:]))

    async def update_pipeline(
        self,
        name: str,
        stages: Sequence[str] | None,
        description: str | None,
        labels: Mapping[str, str] | None,
        max_pending: int | None,
        expected_revision: int | None,
        key: RequestKey,
    ) -> Judged:
        """None leaves a field as it is."""
        values = (
            name,
            None if stages is None else list(stages),
            description,
            None if labels is None else dict(labels),
            max_pending,
            expected_revision,
        )
        row = await self._database.change(UPDATE_PIPELINE, values, key, f"pipeline {name}")
        return Judged(row[0], pipeline=to_pipeline(row[1:]))

    async def lock_pipeline(
        self, name: str, reason: str, owner: str, expires_at: datetime | None, key: RequestKey
    ) -> Judged:
        values = (name, reason, owner, expires_at)
        row = await self._database.change(LOCK_PIPELINE, values, key, f"pipeline {name}")
        return Judged(row[0], pipeline=to_pipeline(row[1:], judged_locked=row[0] == "PIPELINE_LOCKED"))

    async def unlock_pipeline(self, name: str, reason: str, start_next: bool, key: RequestKey) -> Judged:
        """With the deployment that it started."""
        values = (name, reason, start_next)
        row = await self._database.change(UNLOCK_PIPELINE, values, key, f"pipeline {name}")
        pipeline, deployment = row[1 : 1 + PIPELINE_WIDTH], row[1 + PIPELINE_WIDTH :]
        return Judged(row[0], to_deployment(deployment), to_pipeline(pipeline))

    # Changes of a deployment.

    async def trigger(
        self,
        id: UUID,
        pipeline: str,
        version: str,
        on_busy: str,
        labels: Mapping[str, str],
        reason: str,
        key: RequestKey,
    ) -> Judged:
        """on_busy: REJECT, QUEUE or SUPERSEDE."""
        values = (id, pipeline, version, on_busy, dict(labels), reason)
        row = await self._database.change(TRIGGER, values, key, f"deployment {id}")
        split = 1 + DEPLOYMENT_WIDTH
        deployment = to_deployment(row[1:split], row[-WAITING_WIDTH:])
        locked = row[0] == "PIPELINE_LOCKED"
        return Judged(row[0], deployment, to_pipeline(row[split:-WAITING_WIDTH], judged_locked=locked))

    async def advance(self, id: UUID, expected_stage: str | None, reason: str, key: RequestKey) -> Judged:
        return await self._change(ADVANCE, id, key, expected_stage, reason)

    async def cancel(self, id: UUID, reason: str, key: RequestKey) -> Judged:
        return await self._change(CANCEL, id, key, reason)

    async def rollback(
        self,
        id: UUID,
        redeploy_id: UUID | None,
        redeploy_version: str | None,
        reason: str,
        key: RequestKey,
    ) -> Judged:
        """redeploy_id: of the deployment to put in its place, of the last known good version if
        redeploy_version is None."""
        return await self._change(ROLLBACK, id, key, redeploy_id, redeploy_version, reason)

    async def _change(self, call: Statement, id: UUID, key: RequestKey, *values: object) -> Judged:
        row = await self._database.change(call, (id, *values), key, f"deployment {id}")
        return Judged(row[0], to_deployment(row[1:-1]), started=row[-1])

    # Reads. Each raises StoreUnavailable or Overloaded.

    async def get_pipeline(self, name: str) -> Pipeline | None:
        rows = await self._database.read(GET_PIPELINE, (name,))
        return to_pipeline(rows[0]) if rows else None

    async def list_pipelines(self, after: str, limit: int) -> list[Pipeline]:
        """In the order of their names, the ones after that name."""
        rows = await self._database.read(LIST_PIPELINES, (after, limit))
        return [pipeline for row in rows if (pipeline := to_pipeline(row))]

    async def pipeline_state(self, name: str, queue_limit: int) -> PipelineState | None:
        rows = await self._database.read(STATE, (queue_limit, name))
        if not rows or (pipeline := to_pipeline(rows[0][:PIPELINE_WIDTH])) is None:
            return None
        deployments = [
            to_deployment(row[PIPELINE_WIDTH + 1 : -WAITING_WIDTH], row[-WAITING_WIDTH:]) for row in rows
        ]
        stages = await self._database.read(STAGE_STATES, (name,))
        return PipelineState(
            pipeline,
            next((d for d in deployments if d and not d.waiting), None),
            sorted((d for d in deployments if d and d.waiting), key=lambda d: d.seq),
            rows[0][PIPELINE_WIDTH],
            [to_stage_state(row) for row in stages],
        )

    async def get_deployment(self, id: UUID) -> Deployment | None:
        rows = await self._database.read(GET_DEPLOYMENT, (id,))
        return to_deployment(rows[0][:-WAITING_WIDTH], rows[0][-WAITING_WIDTH:]) if rows else None

    async def history(
        self, pipeline: str, where: HistoryFilter, before: int, limit: int
    ) -> list[Deployment] | None:
        """Newest first, those with a seq below `before`. None: there is no such pipeline."""
        values = (
            *(pipeline, before, limit),
            *(list(where.statuses) or None, where.reached_stage or None, where.completed_stage or None),
        )
        rows = await self._database.read(HISTORY, values, alone=limit > ROWS_TOGETHER)
        if not rows:
            return None
        deployments = (to_deployment(row[:-WAITING_WIDTH], row[-WAITING_WIDTH:]) for row in rows)
        return [deployment for deployment in deployments if deployment]

    async def pipeline_events(self, name: str, after: int, limit: int) -> list[LoggedEvent]:
        """Oldest first, those with an event_no above `after`."""
        rows = await self._database.read(PIPELINE_EVENTS, (name, after, limit))
        return [to_event(row) for row in rows]

    async def deployment_events(self, id: UUID, after: int, limit: int) -> list[LoggedEvent]:
        """As `pipeline_events`."""
        rows = await self._database.read(DEPLOYMENT_EVENTS, (id, after, limit))
        return [to_event(row) for row in rows]
