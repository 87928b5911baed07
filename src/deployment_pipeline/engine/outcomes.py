"""The outcome words of the SQL functions, as refusals."""

from uuid import UUID

from deployment_pipeline.model import Change, Deployment, Judged, Pipeline
from deployment_pipeline.refusals import (
    DeploymentEnded,
    DeploymentNotFound,
    DeploymentNotInProgress,
    InvalidFields,
    NoKnownGood,
    PipelineBusy,
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


def refusal_of_deployment_change(
    judged: Judged, id: UUID, request_id: str, expected_stage: str
) -> Refusal | None:
    """Of dp_advance, dp_cancel and dp_rollback; None if the change was made."""
    match judged:
        case Judged("OK" | "REPLAYED"):
            return None
        case Judged("DEPLOYMENT_NOT_FOUND"):
            return DeploymentNotFound(id)
        case Judged("DEPLOYMENT_NOT_IN_PROGRESS", Deployment() as d):
            return DeploymentNotInProgress(id, d.status)
        case Judged("DEPLOYMENT_ENDED", Deployment() as d) if d.completed_at:
            return DeploymentEnded(id, d.status, d.completed_at)
        case Judged("STAGE_MISMATCH", Deployment() as d):
            return StageMismatch(id, expected_stage, d.current_stage)
        case Judged("NO_KNOWN_GOOD", Deployment() as d):
            return NoKnownGood(d.pipeline_name, id, d.version)
        case _:
            return _rest(judged, request_id)


def refusal_of_pipeline_change(
    judged: Judged, name: str, request_id: str, expected_revision: int = 0
) -> Refusal | None:
    """Of dp_trigger and of the functions that change a pipeline; None if the change was made."""
    match judged:
        case Judged("OK" | "REPLAYED"):
            return None
        case Judged("PIPELINE_NOT_FOUND"):
            return PipelineNotFound(name)
        case Judged("PIPELINE_BUSY", Deployment() as active):
            return busy(active)
        case Judged("PIPELINE_LOCKED", pipeline=Pipeline() as p) if p.lock:
            lock = p.lock
            return PipelineLocked(name, lock.owner, lock.reason, lock.locked_at, lock.expires_at)
        case Judged("PIPELINE_NOT_LOCKED"):
            return PipelineNotLocked(name)
        case Judged("QUEUE_FULL", pipeline=Pipeline() as p):
            return QueueFull(name, p.max_pending)
        case Judged("REVISION_MISMATCH", pipeline=Pipeline() as p):
            return RevisionMismatch(name, expected_revision, p.revision)
        case Judged("EXPIRY_PASSED"):
            return InvalidFields([Violation("expires_at", "must be in the future")])
        case _:
            return _rest(judged, request_id)


def deployment_change(judged: Judged, refusal: Refusal | None) -> Change[Deployment]:
    """What was made of a deployment. Raises the refusal."""
    if refusal or judged.deployment is None:
        raise refusal or AssertionError(f"{judged.outcome} without a deployment")
    return Change(judged.deployment, judged.outcome == "REPLAYED")


def busy(active: Deployment) -> PipelineBusy:
    return PipelineBusy(
        active.pipeline_name,
        active.id,
        active.version,
        active.current_stage,
        active.started_at or active.created_at,
    )


def _rest(judged: Judged, request_id: str) -> Refusal:
    if judged.outcome == "REQUEST_ID_REUSED":
        return RequestIdReused(request_id)
    raise AssertionError(f"the store answered {judged.outcome}")
