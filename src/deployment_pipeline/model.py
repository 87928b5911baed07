"""What the service talks about, as it stood in one database snapshot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar
from uuid import UUID

from deployment_pipeline.states import Status

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lock:
    owner: str
    reason: str
    locked_at: datetime
    expires_at: datetime | None  # None: it does not expire


@dataclass(frozen=True, slots=True)
class Pipeline:
    name: str
    stages: tuple[str, ...]
    description: str
    labels: Mapping[str, str]
    max_pending: int
    revision: int
    created_at: datetime
    updated_at: datetime
    lock: Lock | None  # the one that stood when this was read


@dataclass(frozen=True, slots=True)
class Active:
    """What others need to know of the deployment that is IN_PROGRESS."""

    id: UUID
    version: str
    stage: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """Where a PENDING deployment stands in line, and what is in the way."""

    position: int  # 1: the next to start
    active: Active | None
    locked: bool
    lock_owner: str
    lock_reason: str
    lock_expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Deployment:
    id: UUID
    pipeline_name: str
    seq: int
    version: str
    stages: tuple[str, ...]
    stage_index: int | None  # None: it never started
    stage_entered_at: tuple[datetime, ...]
    status: Status
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    triggered_by: str
    reason: str
    cause: str | None  # why it ended: CANCELLED, ROLLED_BACK or SUPERSEDED
    cause_message: str
    labels: Mapping[str, str]
    rollback_of: UUID | None
    redeployed_by: UUID | None
    superseded_by: UUID | None
    waiting: Waiting | None  # set if it is PENDING

    @property
    def current_stage(self) -> str:
        """The last stage reached; empty if it never started."""
        return "" if self.stage_index is None else self.stages[self.stage_index]


@dataclass(frozen=True, slots=True)
class StageState:
    """The deployment that completed a stage last: what is live there."""

    name: str
    deployment_id: UUID | None
    version: str
    seq: int
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class PipelineState:
    pipeline: Pipeline
    active: Deployment | None
    queue: Sequence[Deployment]  # the next to start first; no more than were asked for
    pending_count: int
    stages: Sequence[StageState]


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One line of the audit trail."""

    pipeline_name: str
    event_no: int
    type: str
    deployment_id: UUID | None
    stage: str
    from_status: Status | None
    to_status: Status | None
    actor: str
    reason: str
    request_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class HistoryFilter:
    """Which deployments of a pipeline to show; empty: all."""

    statuses: Sequence[str] = ()
    reached_stage: str = ""
    completed_stage: str = ""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a list."""

    items: Sequence[T]
    more: bool
    token_after: Callable[[T], str]  # where the list goes on, if this is the last item that is shown


@dataclass(frozen=True, slots=True)
class Judged:
    """What a change's SQL function answered: its outcome's word, and the rows that it is about."""

    outcome: str
    deployment: Deployment | None = None
    pipeline: Pipeline | None = None
    started: UUID | None = None  # what took the slot that was freed


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """A change's answer: the current snapshot, and whether an earlier call had made the change already."""

    snapshot: T
    replayed: bool
