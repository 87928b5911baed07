"""What a SQL function decided: a snapshot, or a refusal with the facts of what is in the way."""

from collections.abc import Sequence

from deployment_pipeline.commands import (
    AdvanceStage,
    Command,
    CreatePipeline,
    DeploymentCommand,
    LockPipeline,
    PipelineCommand,
    TriggerDeployment,
    UnlockPipeline,
    UpdatePipeline,
)
from deployment_pipeline.engine.admission import retry_without_token
from deployment_pipeline.model import MADE, Decision, Deployment, Lock, Outcome, Pipeline, Snapshot
from deployment_pipeline.refusals import (
    DeploymentEnded,
    DeploymentNotFound,
    DeploymentNotInProgress,
    InvalidFields,
    LockMismatch,
    NoKnownGood,
    PipelineBusy,
    PipelineExists,
    PipelineLocked,
    PipelineNotFound,
    PipelineNotLocked,
    QueueFull,
    Refusal,
    RequestIdReused,
    RevisionMismatch,
    StageMismatch,
    Violation,
)


def deployment(decision: Decision, asked: Command) -> Snapshot[Deployment]:
    """Raises the refusal."""
    if decision.outcome in MADE and decision.deployment:
        return Snapshot(decision.deployment, decision.outcome is Outcome.REPLAYED)
    raise refusal(decision, asked)


def pipeline(decision: Decision, asked: Command) -> Snapshot[Pipeline]:
    """Raises the refusal."""
    if decision.outcome in MADE and decision.pipeline:
        return Snapshot(decision.pipeline, decision.outcome is Outcome.REPLAYED)
    raise refusal(decision, asked)


def busy(active: Deployment) -> PipelineBusy:
    return PipelineBusy(
        active.pipeline_name,
        active.id,
        active.version,
        active.current_stage,
        active.started_at or active.created_at,
    )


def refusal(decision: Decision, asked: Command) -> Refusal:
    if decision.outcome is Outcome.REQUEST_ID_REUSED and asked.request_id:
        return RequestIdReused(asked.request_id)
    if decision.outcome in (Outcome.REQUEST_ID_REUSED, Outcome.RETRY_WITHOUT_TOKEN):
        # Another attempt, with the same identity from a mesh.
        return retry_without_token(asked)
    match asked:
        case DeploymentCommand():
            return _of_deployment(decision, asked)
        case PipelineCommand() | TriggerDeployment():
            return _of_pipeline(decision, asked)
        case _:
            raise AssertionError(f"{asked} cannot be refused")


def _of_deployment(decision: Decision, asked: DeploymentCommand) -> Refusal:
    id = asked.deployment_id
    match decision.outcome, decision.deployment:
        case Outcome.DEPLOYMENT_NOT_FOUND, None:
            return DeploymentNotFound(id)
        case Outcome.DEPLOYMENT_NOT_IN_PROGRESS, Deployment() as found:
            return DeploymentNotInProgress(id, found.status)
        case Outcome.DEPLOYMENT_ENDED, Deployment(completed_at=ended_at) as found if ended_at:
            return DeploymentEnded(id, found.status, ended_at)
        case Outcome.STAGE_MISMATCH, Deployment() as found if isinstance(asked, AdvanceStage):
            return StageMismatch(id, asked.expected_stage, found.current_stage)
        case Outcome.NO_KNOWN_GOOD, Deployment() as found:
            return NoKnownGood(found.pipeline_name, id, found.version)
        case outcome, _:
            raise AssertionError(f"{asked} cannot end as {outcome}")


def _of_pipeline(decision: Decision, asked: PipelineCommand | TriggerDeployment) -> Refusal:
    name = asked.pipeline
    match decision.outcome, decision.pipeline:
        case Outcome.PIPELINE_NOT_FOUND, None:
            return PipelineNotFound(name)
        case Outcome.PIPELINE_BUSY, _ if decision.deployment:
            return busy(decision.deployment)
        case Outcome.PIPELINE_LOCKED | Outcome.LOCK_MISMATCH, Pipeline(lock=lock) if lock:
            return _of_lock(decision.outcome, lock, asked)
        case Outcome.PIPELINE_NOT_LOCKED, _:
            return PipelineNotLocked(name)
        case Outcome.QUEUE_FULL, Pipeline() as found:
            return QueueFull(name, found.max_pending)
        case Outcome.REVISION_MISMATCH, Pipeline() as found if isinstance(asked, UpdatePipeline):
            return RevisionMismatch(name, asked.expected_revision, found.revision)
        case Outcome.PIPELINE_EXISTS, Pipeline() as found if isinstance(asked, CreatePipeline):
            return PipelineExists(name, found.revision, _differences(found, asked))
        case Outcome.EXPIRY_PASSED, _:
            return InvalidFields([Violation("expires_at", "must be in the future")])
        case outcome, _:
            raise AssertionError(f"{asked} cannot end as {outcome}")


def _of_lock(outcome: Outcome, lock: Lock, asked: PipelineCommand | TriggerDeployment) -> Refusal:
    """By the lock that stands."""
    if outcome is Outcome.LOCK_MISMATCH and isinstance(asked, LockPipeline | UnlockPipeline):
        return LockMismatch(asked.name, lock.no, lock.owner, lock.locked_by, lock.reason, asked.lock_no)
    return PipelineLocked(
        asked.pipeline, lock.no, lock.owner, lock.locked_by, lock.reason, lock.locked_at, lock.expires_at
    )


def _differences(found: Pipeline, asked: CreatePipeline) -> Sequence[str]:
    same = {
        "stages": list(found.stages) == list(asked.stages),
        "description": found.description == asked.description,
        "labels": found.labels == asked.labels,
        "max_pending": found.max_pending == asked.max_pending,
    }
    return [field for field in same if not same[field]]
