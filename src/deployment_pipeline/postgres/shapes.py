"""Rows and the values that they stand for: which columns a statement asks for, and what they become."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from deployment_pipeline.model import Active, Deployment, Lock, LoggedEvent, Pipeline, StageState, Waiting
from deployment_pipeline.states import Status

Row: TypeAlias = Sequence[Any]

_PIPELINE = (
    *("name", "stages", "description", "labels", "max_pending", "revision", "created_at"),
    *("updated_at", "lock_owner", "lock_reason", "locked_at", "lock_expires_at"),
)
_DEPLOYMENT = (
    *("id", "pipeline_name", "seq", "version", "stages", "stage_index", "stage_entered_at", "status"),
    *("created_at", "started_at", "completed_at", "triggered_by", "reason", "cause", "cause_message"),
    *("labels", "rollback_of", "redeployed_by", "superseded_by"),
)
_WAITING = (
    *("queue_position", "active_id", "active_version", "active_stage", "active_since"),
    *("lock_owner", "lock_reason", "lock_expires_at"),
)

PIPELINE_WIDTH = len(_PIPELINE) + 1
DEPLOYMENT_WIDTH = len(_DEPLOYMENT)
WAITING_WIDTH = len(_WAITING)
NOT_WAITING = (None,) * WAITING_WIDTH


def _columns(row: str, names: Sequence[str]) -> str:
    return ", ".join(f"{row}.{name}" for name in names)


def pipeline_columns(row: str) -> str:
    return f"{_columns(row, _PIPELINE)}, dp_is_locked({row}, clock_timestamp())"


def deployment_columns(row: str) -> str:
    return _columns(row, _DEPLOYMENT)


def waiting_columns(row: str) -> str:
    return _columns(row, _WAITING)


def to_pipeline(row: Row, *, judged_locked: bool = False) -> Pipeline | None:
    """From `pipeline_columns`; None if they are NULL. judged_locked: it was when it was judged, and the lock
    may have expired by the time that the row was read."""
    if row[0] is None:
        return None
    name, stages, description, labels, max_pending, revision, created_at, updated_at, *lock = row
    *lock, is_locked = lock
    return Pipeline(
        *(name, tuple(stages), description, labels, max_pending, revision, created_at, updated_at),
        lock=Lock(*lock) if is_locked or judged_locked else None,
    )


def to_deployment(row: Row, waiting: Row = NOT_WAITING) -> Deployment | None:
    """From `deployment_columns` and, if it may be PENDING, `waiting_columns`; None if they are NULL."""
    if row[0] is None:
        return None
    id, pipeline_name, seq, version, stages, stage_index, entered_at, status, *rest = row
    return Deployment(
        *(id, pipeline_name, seq, version, tuple(stages), stage_index, tuple(entered_at)),
        *(Status(status), *rest, _to_waiting(waiting) if status == "PENDING" else None),
    )


def _to_waiting(row: Row) -> Waiting:
    position, active_id, version, stage, since, owner, reason, expires_at = row
    active = Active(active_id, version, stage, since) if active_id else None
    locked = owner is not None
    return Waiting(position, active, locked, owner or "", reason or "", expires_at)


def to_stage_state(row: Row) -> StageState:
    name, id, version, seq, completed_at = row
    return StageState(name, id, version or "", seq or 0, completed_at)


def to_event(row: Row) -> LoggedEvent:
    pipeline_name, event_no, type, id, stage, before, after, actor, reason, request_id, at = row
    return LoggedEvent(
        *(pipeline_name, event_no, type, id, stage or ""),
        Status(before) if before else None,
        Status(after) if after else None,
        *(actor, reason, request_id or "", at),
    )
