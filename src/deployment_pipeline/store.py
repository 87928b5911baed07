"""The only place that speaks SQL.

A change is one call of one function in sql/functions: one round trip, and no row lock is ever held while
this process is elsewhere. The function's outcome comes back as a word with the row it is about. A read is
one statement.
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

from psycopg.types.json import Jsonb

from deployment_pipeline.database import Database, Row
from deployment_pipeline.identity import RequestKey
from deployment_pipeline.model import Deployment, HistoryFilter, Pipeline
from deployment_pipeline.states import Status

# In the order of the model's fields.
_PIPELINE = (
    *("name", "stages", "description", "labels", "max_pending", "revision", "created_at"),
    "updated_at",
)
_DEPLOYMENT = (
    *("id", "pipeline_name", "seq", "version", "stages", "stage_index", "stage_entered_at", "status"),
    *("created_at", "started_at", "completed_at", "triggered_by", "reason", "cause", "cause_message"),
    *("labels", "rollback_of", "redeployed_by", "superseded_by"),
)


def _of(row: str, columns: Sequence[str]) -> str:
    return ", ".join(f"{row}.{column}" for column in columns)


def _call(function: str, arguments: int, returns: str, columns: Sequence[str]) -> bytes:
    placeholders = ", ".join(["%s"] * arguments)
    return f"SELECT outcome, {_of(f'({returns})', columns)} FROM {function}({placeholders})".encode()


_CREATE_PIPELINE = _call("dp_create_pipeline", 8, "pipeline", _PIPELINE)
_UPDATE_PIPELINE = _call("dp_update_pipeline", 9, "pipeline", _PIPELINE)
_TRIGGER = _call("dp_trigger", 8, "deployment", _DEPLOYMENT)
_ADVANCE = _call("dp_advance", 6, "deployment", _DEPLOYMENT)
_END = _call("dp_end", 6, "deployment", _DEPLOYMENT)
_GET_PIPELINE = f"SELECT {_of('p', _PIPELINE)} FROM dp_pipelines p WHERE name = %s".encode()
_LIST_PIPELINES = (
    f"SELECT {_of('p', _PIPELINE)} FROM dp_pipelines p WHERE name > %s ORDER BY name LIMIT %s".encode()
)
_GET_DEPLOYMENT = f"SELECT {_of('d', _DEPLOYMENT)} FROM dp_deployments d WHERE id = %s".encode()
# One row without a deployment when there is a pipeline and nothing to show; none when there is no pipeline.
_HISTORY = f"""
    SELECT {_of("d", _DEPLOYMENT)}
    FROM dp_pipelines p LEFT JOIN LATERAL (
        SELECT * FROM dp_deployments d
        WHERE d.pipeline_name = p.name AND d.seq < %(before)s
          AND (%(statuses)s::text[] IS NULL OR d.status = ANY (%(statuses)s))
          AND (%(reached)s::text IS NULL OR array_position(d.stages, %(reached)s) <= d.stage_index + 1)
          AND (%(completed)s::text IS NULL OR array_position(d.stages, %(completed)s)
               <= d.stage_index + (d.status = 'COMPLETED')::integer)
        ORDER BY d.seq DESC LIMIT %(limit)s
    ) d ON true
    WHERE p.name = %(pipeline)s ORDER BY d.seq DESC
""".encode()


def _pipeline(row: Row) -> Pipeline | None:
    if row[0] is None:
        return None
    name, stages, *rest = row
    return Pipeline(name, tuple(stages), *rest)


def _deployment(row: Row) -> Deployment | None:
    if row[0] is None:
        return None
    id, pipeline_name, seq, version, stages, stage_index, entered_at, status, *rest = row
    return Deployment(
        *(id, pipeline_name, seq, version, tuple(stages), stage_index, tuple(entered_at)),
        Status(status),
        *rest,
    )


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def page_token_key(self) -> bytes:
        """The key that signs page tokens, the same for all replicas."""
        [(key,)] = await self._database.read(b"SELECT page_token_key FROM dp_installation", ())
        return UUID(str(key)).bytes

    async def ping(self) -> None:
        """Raises StoreUnavailable if Postgres does not answer, Overloaded if all connections are busy."""
        await self._database.read(b"SELECT 1", ())

    # Changes: (outcome, row it is about). The outcomes are listed in the functions' files.

    async def create_pipeline(
        self,
        name: str,
        stages: Sequence[str],
        description: str,
        labels: Mapping[str, str],
        max_pending: int,
        key: RequestKey,
    ) -> tuple[str, Pipeline | None]:
        values = (name, list(stages), description, Jsonb(labels), max_pending)
        row = await self._database.change(_CREATE_PIPELINE, values, key, f'pipeline "{name}"')
        return row[0], _pipeline(row[1:])

    async def update_pipeline(
        self,
        name: str,
        stages: Sequence[str] | None,
        description: str | None,
        labels: Mapping[str, str] | None,
        max_pending: int | None,
        expected_revision: int | None,
        key: RequestKey,
    ) -> tuple[str, Pipeline | None]:
        values = (
            name,
            None if stages is None else list(stages),
            description,
            None if labels is None else Jsonb(labels),
            max_pending,
            expected_revision,
        )
        row = await self._database.change(_UPDATE_PIPELINE, values, key, f'pipeline "{name}"')
        return row[0], _pipeline(row[1:])

    async def trigger(
        self,
        id: UUID,
        pipeline: str,
        version: str,
        labels: Mapping[str, str],
        reason: str,
        key: RequestKey,
    ) -> tuple[str, Deployment | None]:
        values = (id, pipeline, version, Jsonb(labels), reason)
        row = await self._database.change(_TRIGGER, values, key, f"deployment {id}")
        return row[0], _deployment(row[1:])

    async def advance(
        self, id: UUID, expected_stage: str | None, reason: str, key: RequestKey
    ) -> tuple[str, Deployment | None]:
        row = await self._database.change(_ADVANCE, (id, expected_stage, reason), key, f"deployment {id}")
        return row[0], _deployment(row[1:])

    async def end(
        self, id: UUID, event: str, reason: str, key: RequestKey
    ) -> tuple[str, Deployment | None]:
        """event: ROLLBACK or CANCEL."""
        row = await self._database.change(_END, (id, event, reason), key, f"deployment {id}")
        return row[0], _deployment(row[1:])

    # Reads: single statements.

    async def get_pipeline(self, name: str) -> Pipeline | None:
        rows = await self._database.read(_GET_PIPELINE, (name,))
        return _pipeline(rows[0]) if rows else None

    async def list_pipelines(self, after: str, limit: int) -> list[Pipeline]:
        """In the order of their names, the ones after that name."""
        rows = await self._database.read(_LIST_PIPELINES, (after, limit))
        return [pipeline for row in rows if (pipeline := _pipeline(row))]

    async def get_deployment(self, id: UUID) -> Deployment | None:
        rows = await self._database.read(_GET_DEPLOYMENT, (id,))
        return _deployment(rows[0]) if rows else None

    async def history(
        self, pipeline: str, where: HistoryFilter, before: int, limit: int
    ) -> list[Deployment] | None:
        """Newest first, those with a seq below `before`. None: there is no such pipeline."""
        values = {
            "pipeline": pipeline,
            "before": before,
            "limit": limit,
            "statuses": [str(status) for status in where.statuses] or None,
            "reached": where.reached_stage or None,
            "completed": where.completed_stage or None,
        }
        rows = await self._database.read(_HISTORY, values)
        return [d for row in rows if (d := _deployment(row))] if rows else None
