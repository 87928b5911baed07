"""The store's outcome words, as answers or refusals."""

from typing import NoReturn
from uuid import UUID

from deployment_pipeline.errors import (
    DeploymentEnded,
    DeploymentNotFound,
    DeploymentNotInProgress,
    PipelineBusy,
    PipelineExists,
    PipelineNotFound,
    RequestIdReused,
    RevisionMismatch,
    StageMismatch,
)
from deployment_pipeline.model import Change, Deployment, Pipeline


def pipeline(
    outcome: str, found: Pipeline | None, name: str, request_id: str, expected_revision: int = 0
) -> Change[Pipeline]:
    """Of dp_create_pipeline and dp_update_pipeline."""
    match outcome, found:
        case (("OK" | "REPLAYED"), Pipeline()):
            return Change(found, outcome == "REPLAYED")
        case "PIPELINE_NOT_FOUND", _:
            raise PipelineNotFound(name)
        case "PIPELINE_EXISTS", Pipeline():
            raise PipelineExists(name, found.revision, found.stages)
        case "REVISION_MISMATCH", Pipeline():
            raise RevisionMismatch(name, expected_revision, found.revision)
        case _:
            _rest(outcome, request_id)


def trigger(
    outcome: str, found: Deployment | None, pipeline_name: str, request_id: str
) -> Change[Deployment]:
    """Of dp_trigger."""
    match outcome, found:
        case (("OK" | "REPLAYED"), Deployment()):
            return Change(found, outcome == "REPLAYED")
        case "PIPELINE_NOT_FOUND", _:
            raise PipelineNotFound(pipeline_name)
        case "PIPELINE_BUSY", Deployment():
            raise busy(found)
        case _:
            _rest(outcome, request_id)


def deployment(
    outcome: str, found: Deployment | None, id: UUID, request_id: str, expected_stage: str
) -> Change[Deployment]:
    """Of dp_advance and dp_end."""
    match outcome, found:
        case (("OK" | "REPLAYED"), Deployment()):
            return Change(found, outcome == "REPLAYED")
        case "DEPLOYMENT_NOT_FOUND", _:
            raise DeploymentNotFound(id)
        case "DEPLOYMENT_NOT_IN_PROGRESS", Deployment():
            raise DeploymentNotInProgress(id, found.status)
        case "DEPLOYMENT_ENDED", Deployment() if found.completed_at:
            raise DeploymentEnded(id, found.status, found.completed_at)
        case "STAGE_MISMATCH", Deployment():
            raise StageMismatch(id, expected_stage, found.current_stage)
        case _:
            _rest(outcome, request_id)


def busy(active: Deployment) -> PipelineBusy:
    return PipelineBusy(
        active.pipeline_name,
        active.id,
        active.version,
        active.current_stage,
        active.started_at or active.created_at,
    )


def _rest(outcome: str, request_id: str) -> NoReturn:
    if outcome == "REQUEST_ID_REUSED":
        raise RequestIdReused(request_id)
    raise AssertionError(f"the store answered {outcome}")
