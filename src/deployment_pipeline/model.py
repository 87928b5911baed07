"""What the service talks about, as it stood in one database snapshot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar
from uuid import UUID

from deployment_pipeline.states import EventType, Known, Status

T = TypeVar("T")


class OnBusy(StrEnum):
    """What a trigger does when another deployment is IN_PROGRESS."""

    REJECT = "REJECT"
    QUEUE = "QUEUE"
    SUPERSEDE = "SUPERSEDE"


class CauseCode(Known):
    """Why a deployment ended other than by completion, or what it waits for."""

    UNSPECIFIED = "UNSPECIFIED"
    # It ended. These are stored.
    CANCELLED = "CANCELLED"
    ROLLED_BACK = "ROLLED_BACK"
    SUPERSEDED = "SUPERSEDED"
    # It waits.
    BUSY = "BUSY"
    LOCKED = "LOCKED"
    NOT_RESUMED = "NOT_RESUMED"


class Outcome(StrEnum):
    """What a change's SQL function answers: what it did, or why it did nothing."""

    OK = "OK"
    REPLAYED = "REPLAYED"  # an earlier call of the same request did it
    MUST_WAIT = "MUST_WAIT"  # in a batch: for a row lock that somebody else holds
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    RETRY_WITHOUT_TOKEN = "RETRY_WITHOUT_TOKEN"  # noqa: S105  # a repeat of nothing that is known
    PIPELINE_NOT_FOUND = "PIPELINE_NOT_FOUND"
    PIPELINE_EXISTS = "PIPELINE_EXISTS"
    PIPELINE_BUSY = "PIPELINE_BUSY"
    PIPELINE_LOCKED = "PIPELINE_LOCKED"
    PIPELINE_NOT_LOCKED = "PIPELINE_NOT_LOCKED"
    LOCK_MISMATCH = "LOCK_MISMATCH"
    QUEUE_FULL = "QUEUE_FULL"
    REVISION_MISMATCH = "REVISION_MISMATCH"
    EXPIRY_PASSED = "EXPIRY_PASSED"
    DEPLOYMENT_NOT_FOUND = "DEPLOYMENT_NOT_FOUND"
    DEPLOYMENT_NOT_IN_PROGRESS = "DEPLOYMENT_NOT_IN_PROGRESS"
    DEPLOYMENT_ENDED = "DEPLOYMENT_ENDED"
    STAGE_MISMATCH = "STAGE_MISMATCH"
    NO_KNOWN_GOOD = "NO_KNOWN_GOOD"


MADE = (Outcome.OK, Outcome.REPLAYED)


@dataclass(frozen=True, slots=True)
class Installation:
    """What all replicas on one database have in common."""

    id: str  # eight hex digits
    page_token_key: bytes  # signs page tokens
    min_level: int  # what is stored may be of this release level or below


@dataclass(frozen=True, slots=True)
class Lock:
    locked_at: datetime
    no: int  # the event_no of its LOCK event
    owner: str  # a text, for people
    locked_by: str  # the principal who set it; empty: an anonymous caller
    reason: str
    expires_at: datetime | None  # None: it does not expire
    stands: bool  # it had not expired when this was read


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
    lock: Lock | None  # the last one that nobody lifted


@dataclass(frozen=True, slots=True)
class Waiting:
    """Where a PENDING deployment stands in line, and what is in the way."""

    queue_position: int  # 1: the next to start
    active_id: UUID | None  # None, as all of `active_`: nothing is IN_PROGRESS
    active_version: str
    active_stage: str
    active_since: datetime
    lock_owner: str | None  # None, as all of `lock_`: the pipeline is not locked
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
    triggered_by: str  # a principal's id; empty: an anonymous caller
    via: str  # the service that called on his behalf; empty: none did
    reason: str
    cause: CauseCode | None  # why it ended other than by completion
    cause_message: str
    labels: Mapping[str, str]
    rollback_of: UUID | None
    redeployed_by: UUID | None
    superseded_by: UUID | None
    waiting: Waiting | None = None  # set if it is PENDING

    @property
    def current_stage(self) -> str:
        """The last stage reached; empty if it never started."""
        return "" if self.stage_index is None else self.stages[self.stage_index]


@dataclass(frozen=True, slots=True)
class StageState:
    """The deployment that completed a stage last: what is live there."""

    name: str
    completed_at: datetime | None  # None, as all that follows: no deployment has completed it
    deployment_id: UUID | None
    version: str | None
    seq: int | None


@dataclass(frozen=True, slots=True)
class PipelineState:
    pipeline: Pipeline
    active: Deployment | None
    queue: Sequence[Deployment]  # the next to start first; no more than fit into an answer
    pending_count: int
    stages: Sequence[StageState]


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One line of the audit trail."""

    pipeline_name: str
    event_no: int
    type: EventType
    deployment_id: UUID | None
    stage: str | None
    from_status: Status | None
    to_status: Status | None
    actor: str  # a principal's id; empty: an anonymous caller
    via: str  # the service that called on his behalf; empty: none did
    reason: str
    request_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class HistoryFilter:
    """Which deployments of a pipeline to show; empty: all."""

    statuses: Sequence[Status] = ()
    reached_stage: str = ""
    completed_stage: str = ""


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """Part of a list, as it was read."""

    items: Sequence[T]
    next: str | int | None  # the position after which the list goes on; None: nowhere


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a list, as it is shown."""

    items: Sequence[T]
    next_token: str  # where the list goes on after all of them; empty: nowhere
    token_after: Callable[[T], str]  # where it goes on after this one


@dataclass(frozen=True, slots=True)
class Decision:
    """What a change's SQL function decided, and the rows that it is about."""

    outcome: Outcome
    deployment: Deployment | None = None
    pipeline: Pipeline | None = None
    started: UUID | None = None  # what took the slot that was freed


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[T]):
    """What a change answers: how its subject stands now, and whether an earlier call of the same request had
    made the change."""

    value: T
    replayed: bool
