"""Model to proto, and proto to what the engine takes. Total, and without I/O."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from deployment_pipeline.errors import InvalidFields, NotServedYet, Violation
from deployment_pipeline.model import Deployment, HistoryFilter, Pipeline
from deployment_pipeline.states import Status
from dp.v1 import deployment_pipeline_pb2 as pb

_UPDATABLE = ("stages", "description", "labels", "max_pending")


def pipeline(model: Pipeline) -> pb.Pipeline:
    return pb.Pipeline(
        name=model.name,
        stages=model.stages,
        description=model.description,
        labels=model.labels,
        max_pending=model.max_pending,
        revision=model.revision,
        created_at=_timestamp(model.created_at),
        updated_at=_timestamp(model.updated_at),
    )


def deployment(model: Deployment) -> pb.DeploymentStatus:
    return pb.DeploymentStatus(
        id=str(model.id),
        pipeline_name=model.pipeline_name,
        version=model.version,
        current_stage=model.current_stage,
        status=pb.DeploymentStatus.Status.Value(model.status),
        started_at=_timestamp(model.started_at),
        completed_at=_timestamp(model.completed_at),
        seq=model.seq,
        created_at=_timestamp(model.created_at),
        stages=[
            pb.StageRun(
                name=run.name,
                entered_at=_timestamp(run.entered_at),
                left_at=_timestamp(run.left_at),
            )
            for run in model.stage_runs()
        ],
        stage_index=model.stage_index,
        total_stages=len(model.stages),
        triggered_by=model.triggered_by,
        reason=model.reason,
        cause=(
            pb.Cause(code=pb.Cause.Code.Value(model.cause), message=model.cause_message)
            if model.cause
            else None
        ),
        labels=model.labels,
        rollback_of=_id(model.rollback_of),
        redeployed_by=_id(model.redeployed_by),
        superseded_by=_id(model.superseded_by),
    )


def history(models: Sequence[Deployment], next_page_token: str) -> pb.GetHistoryResponse:
    return pb.GetHistoryResponse(deployments=map(deployment, models), next_page_token=next_page_token)


def pipelines(models: Sequence[Pipeline], next_page_token: str) -> pb.ListPipelinesResponse:
    return pb.ListPipelinesResponse(pipelines=map(pipeline, models), next_page_token=next_page_token)


def pipeline_changes(request: pb.UpdatePipelineRequest) -> dict[str, Any]:
    """The new values, by field: those in the mask, or without one those that are not empty.
    Raises InvalidFields for a path that is no field of a pipeline."""
    paths = list(request.update_mask.paths)
    if "*" in paths:
        paths = list(_UPDATABLE)
    elif not paths:
        paths = [field.name for field, _ in request.ListFields() if field.name in _UPDATABLE]
    unknown = [path for path in paths if path not in _UPDATABLE]
    if unknown:
        rule = f"may name {', '.join(_UPDATABLE)} or *; not {', '.join(map(repr, unknown))}"
        raise InvalidFields([Violation("update_mask", rule)])
    values: dict[str, Any] = {
        "stages": list(request.stages),
        "description": request.description,
        "labels": dict(request.labels),
        "max_pending": request.max_pending,
    }
    return {path: values[path] for path in paths}


def history_filter(request: pb.GetHistoryRequest) -> HistoryFilter:
    """Raises InvalidFields for a status that is none."""
    known = {pb.DeploymentStatus.Status.Value(status): status for status in Status}
    violations = [
        Violation(f"statuses[{i}]", f"must be one of {', '.join(Status)}, not {value}")
        for i, value in enumerate(request.statuses)
        if value not in known
    ]
    if violations:
        raise InvalidFields(violations)
    return HistoryFilter(
        sorted({known[value] for value in request.statuses}),
        request.reached_stage,
        request.completed_stage,
    )


def refuse_unserved_trigger(request: pb.TriggerDeploymentRequest) -> None:
    on_busy = pb.TriggerDeploymentRequest.OnBusy
    if request.on_busy in (on_busy.QUEUE, on_busy.SUPERSEDE):
        raise NotServedYet(f"on_busy = {on_busy.Name(request.on_busy)}")
    if request.on_busy not in on_busy.values():
        rule = f"must be one of {', '.join(on_busy.keys()[1:])}, not {request.on_busy}"
        raise InvalidFields([Violation("on_busy", rule)])


def refuse_unserved_rollback(request: pb.RollbackRequest) -> None:
    if redeploy := request.WhichOneof("redeploy"):
        raise NotServedYet(redeploy)


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def _id(id: UUID | None) -> str:
    return "" if id is None else str(id)
