"""Every refusal that a caller can get: one class each, with the facts, the text and the stable reason.

The text is for a person at a terminal: what was refused, what is in the way, which call would succeed. How a
refusal becomes a gRPC status is the edge's business (`edge.answers`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID

from deployment_pipeline.states import Status


def _text(fact: object) -> str:
    if fact is None:
        return ""
    if isinstance(fact, datetime):
        return fact.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(fact)


def by(owner: str) -> str:
    return f' by "{owner}"' if owner else ""


def until(expires_at: datetime | None) -> str:
    return f"until {_text(expires_at)}" if expires_at else "with no expiry"


def busy_with(id: UUID, version: str, stage: str, since: datetime) -> str:
    """Which deployment holds a pipeline, where it is and since when."""
    return f'deployment {id} of version "{version}", at stage "{stage}", has held it since {_text(since)}'


@dataclass(eq=False)
class Refusal(Exception):
    """Nothing was changed (except, maybe, by `OutcomeUnknown`), and the caller is told why."""

    reason: ClassVar[str]

    def facts(self) -> dict[str, str]:
        """The fields, as text: what tools read."""
        return {f.name: _text(getattr(self, f.name)) for f in fields(self)}

    def __str__(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Violation:
    field: str
    problem: str


@dataclass(eq=False)
class InvalidFields(Refusal):
    """One or more fields of the request break their rules; all of them are listed."""

    reason = "INVALID_FIELD"
    violations: Sequence[Violation]

    def facts(self) -> dict[str, str]:
        return {"fields": ",".join(v.field for v in self.violations)}

    def __str__(self) -> str:
        return "; ".join(f"{v.field}: {v.problem}" for v in self.violations)


@dataclass(eq=False)
class RequestIdReused(Refusal):
    """The request_id was used in this pipeline for a request that was not the same."""

    reason = "REQUEST_ID_REUSED"
    request_id: str

    def __str__(self) -> str:
        return (
            f'request_id "{self.request_id}" was already used in this pipeline for another request;'
            " a repeat must be the same in every field; use a new request_id for another change"
        )


@dataclass(eq=False)
class PipelineNotFound(Refusal):
    reason = "PIPELINE_NOT_FOUND"
    pipeline: str

    def __str__(self) -> str:
        return f'there is no pipeline "{self.pipeline}"; CreatePipeline makes one, ListPipelines shows all'


@dataclass(eq=False)
class DeploymentNotFound(Refusal):
    reason = "DEPLOYMENT_NOT_FOUND"
    deployment_id: UUID

    def __str__(self) -> str:
        return (
            f"there is no deployment {self.deployment_id};"
            " TriggerDeployment answers with a deployment's id, GetHistory lists a pipeline's"
        )


@dataclass(eq=False)
class PipelineExists(Refusal):
    """A pipeline of that name exists with another definition."""

    reason = "PIPELINE_EXISTS"
    pipeline: str
    revision: int
    differs: Sequence[str]  # the fields that are not the same

    def facts(self) -> dict[str, str]:
        return {**super().facts(), "differs": ",".join(self.differs)}

    def __str__(self) -> str:
        return (
            f'pipeline "{self.pipeline}" exists (revision {self.revision}) with other'
            f" {' and '.join(self.differs)}; GetPipeline shows it, UpdatePipeline changes it"
        )


@dataclass(eq=False)
class PipelineBusy(Refusal):
    """Another deployment of the pipeline is IN_PROGRESS."""

    reason = "PIPELINE_BUSY"
    pipeline: str
    deployment_id: UUID
    version: str
    stage: str
    since: datetime

    def __str__(self) -> str:
        return (
            f'pipeline "{self.pipeline}" is busy:'
            f" {busy_with(self.deployment_id, self.version, self.stage, self.since)};"
            " trigger with on_busy QUEUE to wait behind it, or try again when it has ended"
            " (AdvanceStage, Rollback or CancelDeployment end it)"
        )


@dataclass(eq=False)
class PipelineLocked(Refusal):
    """People have frozen the pipeline."""

    reason = "PIPELINE_LOCKED"
    pipeline: str
    owner: str
    lock_reason: str
    since: datetime
    expires_at: datetime | None

    def __str__(self) -> str:
        return (
            f'pipeline "{self.pipeline}" has been locked{by(self.owner)} since {_text(self.since)},'
            f" {until(self.expires_at)}: {self.lock_reason}; UnlockPipeline lifts the lock"
        )


@dataclass(eq=False)
class PipelineNotLocked(Refusal):
    """There is no lock to lift, and nothing that start_next could start."""

    reason = "PIPELINE_NOT_LOCKED"
    pipeline: str

    def __str__(self) -> str:
        return (
            f'pipeline "{self.pipeline}" is not locked (a lock may have expired), and there is nothing to'
            " start; GetPipelineState shows where it stands"
        )


@dataclass(eq=False)
class QueueFull(Refusal):
    """max_pending deployments are waiting already."""

    reason = "QUEUE_FULL"
    pipeline: str
    max_pending: int

    def __str__(self) -> str:
        if self.max_pending == 0:
            return (
                f'pipeline "{self.pipeline}" lets nothing wait (max_pending is 0);'
                " trigger again when the active deployment has ended"
            )
        return (
            f'the queue of pipeline "{self.pipeline}" is full: {self.max_pending} deployments wait;'
            " trigger again when one has started, cancel one, or trigger with on_busy SUPERSEDE"
        )


@dataclass(eq=False)
class NoKnownGood(Refusal):
    """No COMPLETED deployment of another version to go back to."""

    reason = "NO_KNOWN_GOOD"
    pipeline: str
    deployment_id: UUID
    version: str

    def __str__(self) -> str:
        return (
            f'no version other than "{self.version}" was ever completed on pipeline "{self.pipeline}", so'
            f" there is none to go back to; deployment {self.deployment_id} is still IN_PROGRESS;"
            " roll it back without redeploy, or with redeploy_version"
        )


@dataclass(eq=False)
class DeploymentNotInProgress(Refusal):
    """The deployment is still PENDING, and what was asked for needs it IN_PROGRESS."""

    reason = "DEPLOYMENT_NOT_IN_PROGRESS"
    deployment_id: UUID
    status: Status

    def __str__(self) -> str:
        return (
            f"deployment {self.deployment_id} is {self.status}: it has not started;"
            " wait until it is IN_PROGRESS, or end it with CancelDeployment"
        )


@dataclass(eq=False)
class DeploymentEnded(Refusal):
    """The deployment is COMPLETED, ROLLED_BACK or CANCELLED, and stays so."""

    reason = "DEPLOYMENT_ENDED"
    deployment_id: UUID
    status: Status
    ended_at: datetime

    def __str__(self) -> str:
        return (
            f"deployment {self.deployment_id} is {self.status}: it ended at {_text(self.ended_at)};"
            " TriggerDeployment starts another one"
        )


@dataclass(eq=False)
class StageMismatch(Refusal):
    """expected_stage is not where the deployment is: it was advanced meanwhile, or the caller is mistaken."""

    reason = "STAGE_MISMATCH"
    deployment_id: UUID
    expected_stage: str
    current_stage: str

    def __str__(self) -> str:
        return (
            f'deployment {self.deployment_id} is at stage "{self.current_stage}",'
            f' not at "{self.expected_stage}"; nothing was advanced'
        )


@dataclass(eq=False)
class RevisionMismatch(Refusal):
    """expected_revision is not the pipeline's: it was changed meanwhile."""

    reason = "REVISION_MISMATCH"
    pipeline: str
    expected_revision: int
    current_revision: int

    def __str__(self) -> str:
        return (
            f'pipeline "{self.pipeline}" is at revision {self.current_revision},'
            f" not at {self.expected_revision}; read it with GetPipeline and decide again"
        )


@dataclass(eq=False)
class UpgradeNotFinished(Refusal):
    """Replicas of the release before may still run. They could not read this, or would not refuse it."""

    reason = "UPGRADE_NOT_FINISHED"
    level: int
    finished_level: int

    def __str__(self) -> str:
        return (
            f"this needs level {self.level}, and replicas of level {self.finished_level} may still run;"
            " nothing was changed; `deployment-pipeline migrate --finish` ends the upgrade when they are gone"
        )


@dataclass(eq=False)
class RetryWithoutToken(Refusal):
    """A proxy or client library sent an AdvanceStage again, and nothing tells a repeat from a new call."""

    reason = "RETRY_WITHOUT_TOKEN"
    deployment_id: UUID

    def __str__(self) -> str:
        return (
            f"this AdvanceStage of deployment {self.deployment_id} is marked as a retry and has neither"
            " expected_stage nor request_id, so it could skip a stage; look with GetDeploymentStatus,"
            " then advance with expected_stage"
        )


@dataclass(eq=False)
class Overloaded(Refusal):
    """More calls wait for a database connection than can be served in time."""

    reason = "OVERLOADED"

    def __str__(self) -> str:
        return "too many calls wait for the database; nothing was changed, try again in a moment"


@dataclass(eq=False)
class StoreUnavailable(Refusal):
    """Postgres is away, or did not answer in time, and nothing was changed."""

    reason = "STORE_UNAVAILABLE"

    def __str__(self) -> str:
        return "the database cannot serve this call now; nothing was changed, try again in a moment"


@dataclass(eq=False)
class ShuttingDown(Refusal):
    """This server is ending; another replica, or this one restarted, will serve the call."""

    reason = "SHUTTING_DOWN"

    def __str__(self) -> str:
        return "this server is shutting down; nothing was changed, try again"


@dataclass(eq=False)
class OutcomeUnknown(Refusal):
    """The connection broke around the commit: the change may or may not have been made."""

    reason = "OUTCOME_UNKNOWN"
    subject: str  # "deployment ID" or "pipeline NAME"
    request_id: str  # empty: the caller sent none

    def __str__(self) -> str:
        again = "look before you send it again, and give a request_id next time"
        if self.request_id:
            again = f'send the same call again with request_id "{self.request_id}"'
        return f"the change of {self.subject} may or may not have been made; {again}"
