"""What a pipeline stands in the way of."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from deployment_pipeline.refusals.base import Refusal, busy_with, by, text, until


@dataclass(eq=False)
class PipelineNotFound(Refusal):
    reason = "PIPELINE_NOT_FOUND"
    pipeline: str

    def __str__(self) -> str:
        return f'there is no pipeline "{self.pipeline}"; CreatePipeline makes one, ListPipelines shows all'


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
    served_from = "postgres"
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
    lock_no: int
    owner: str
    locked_by: str  # the principal who set it; empty: an anonymous caller
    lock_reason: str
    since: datetime
    expires_at: datetime | None

    def __str__(self) -> str:
        return (
            f'pipeline "{self.pipeline}" has been locked{by(self.owner, self.locked_by)}'
            f" since {text(self.since)}, {until(self.expires_at)}: {self.lock_reason};"
            f" UnlockPipeline with lock_no {self.lock_no} lifts the lock"
        )


@dataclass(eq=False)
class LockMismatch(Refusal):
    """Another lock stands than the one that the caller named, or it is somebody else's."""

    reason = "LOCK_MISMATCH"
    pipeline: str
    lock_no: int
    owner: str
    locked_by: str  # the principal who set it; empty: an anonymous caller
    lock_reason: str
    asked_lock_no: int  # 0: none, so only the owner's own lock was meant

    def __str__(self) -> str:
        meant = f"not lock {self.asked_lock_no}" if self.asked_lock_no else "and no lock_no was given"
        is_yours = ", or its owner if it is yours" if self.owner and not self.locked_by else ""
        return (
            f'the lock of pipeline "{self.pipeline}" is lock {self.lock_no}{by(self.owner, self.locked_by)}'
            f", {meant}; nothing was changed; its reason: {self.lock_reason};"
            f" call again with lock_no {self.lock_no}{is_yours}"
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
