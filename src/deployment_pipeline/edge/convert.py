"""Model to proto, and proto to what the engine takes. Total, and without I/O."""

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, TypeVar
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from deployment_pipeline.engine.pipelines import UPDATABLE
from deployment_pipeline.fields import DEFAULT_MAX_PENDING
from deployment_pipeline.model import (
    Deployment,
    HistoryFilter,
    Lock,
    LoggedEvent,
    Page,
    Pipeline,
    PipelineState,
    Waiting,
)
from deployment_pipeline.refusals import InvalidFields, Violation, busy_with, by, until
from dp.v1 import deployment_pipeline_pb2 as pb

M = TypeVar("M", bound=Message)
T = TypeVar("T")

# Clients refuse messages beyond 4 MiB unless told otherwise; one more item must fit, too.
MAX_PAGE_BYTES = 3 * 1024 * 1024

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STATUSES = dict(pb.DeploymentStatus.Status.items())
_ON_BUSY: dict[int, str] = {number: name for name, number in pb.TriggerDeploymentRequest.OnBusy.items()}
_ON_BUSY[pb.TriggerDeploymentRequest.ON_BUSY_UNSPECIFIED] = "REJECT"


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
        lock=_lock(model.lock),
    )


def deployment(model: Deployment) -> pb.DeploymentStatus:
    return _write(pb.DeploymentStatus(), model)


def _write(message: pb.DeploymentStatus, model: Deployment) -> pb.DeploymentStatus:
    """Written in place, for protobuf copies every message that it is given as a field: that takes thrice the
    time of all the rest."""
    message.id = str(model.id)
    message.pipeline_name = model.pipeline_name
    message.version = model.version
    message.current_stage = model.current_stage
    message.status = _STATUSES[model.status]
    message.seq = model.seq
    message.total_stages = len(model.stages)
    message.triggered_by = model.triggered_by
    message.reason = model.reason
    message.rollback_of = _id(model.rollback_of)
    message.redeployed_by = _id(model.redeployed_by)
    message.superseded_by = _id(model.superseded_by)
    _set(message.created_at, model.created_at)
    if model.labels:
        message.labels.update(model.labels)
    if model.started_at:
        _set(message.started_at, model.started_at)
    if model.completed_at:
        _set(message.completed_at, model.completed_at)
    if model.stage_index is not None:
        message.stage_index = model.stage_index
    if model.waiting:
        message.queue_position = model.waiting.position
    if cause := _cause(model):
        message.cause.CopyFrom(cause)
    # A stage is left when the next one is entered or the deployment ends; those to come have no times.
    left = (*model.stage_entered_at[1:], model.completed_at)
    for name, since, ended in zip_longest(model.stages, model.stage_entered_at, left):
        run = message.stages.add()
        run.name = name
        if since:
            _set(run.entered_at, since)
            if ended:
                _set(run.left_at, ended)
    return message


def history(page: Page[Deployment]) -> pb.GetHistoryResponse:
    response = pb.GetHistoryResponse()
    fitting = _fitting(_write(response.deployments.add(), model) for model in page.items)
    del response.deployments[len(fitting) :]  # the one that was one too many
    response.next_page_token = _next(page, len(fitting))
    return response


def pipelines(page: Page[Pipeline]) -> pb.ListPipelinesResponse:
    messages = _fitting(map(pipeline, page.items))
    return pb.ListPipelinesResponse(pipelines=messages, next_page_token=_next(page, len(messages)))


def events(page: Page[LoggedEvent]) -> pb.ListEventsResponse:
    messages = _fitting(map(_event, page.items))
    return pb.ListEventsResponse(events=messages, more=bool(_next(page, len(messages))))


def _fitting(messages: Iterable[M]) -> list[M]:
    """As many as a client takes by default; the first in any case."""
    fitting: list[M] = []
    size = 0
    for message in messages:
        size += message.ByteSize()
        if fitting and size > MAX_PAGE_BYTES:
            break
        fitting.append(message)
    return fitting


def _next(page: Page[T], shown: int) -> str:
    """The token of the next page; empty if this is the last one."""
    if shown == len(page.items) and not page.more:
        return ""
    return page.token_after(page.items[shown - 1])


def pipeline_changes(request: pb.UpdatePipelineRequest) -> tuple[dict[str, Any], list[str]]:
    """The new values, by field: those in the mask, or without one those that are not empty; and the paths
    that name no field of a pipeline."""
    paths = list(request.update_mask.paths)
    if "*" in paths:
        paths = list(UPDATABLE)
    elif not paths:
        paths = [field.name for field, _ in request.ListFields() if field.name in UPDATABLE]
    values: dict[str, Any] = {
        "stages": list(request.stages),
        "description": request.description,
        "labels": dict(request.labels),
        "max_pending": request.max_pending if request.HasField("max_pending") else DEFAULT_MAX_PENDING,
    }
    known = {path: values[path] for path in paths if path in UPDATABLE}
    return known, [path for path in paths if path not in UPDATABLE]


def history_filter(request: pb.GetHistoryRequest) -> HistoryFilter:
    """A status that is none stays a number."""
    names = {number: name for name, number in pb.DeploymentStatus.Status.items() if number}
    return HistoryFilter(
        [names.get(number, str(number)) for number in request.statuses],
        request.reached_stage,
        request.completed_stage,
    )


def unlocked(made: tuple[Pipeline, Deployment | None]) -> pb.UnlockPipelineResponse:
    model, started = made
    return pb.UnlockPipelineResponse(
        pipeline=pipeline(model), started=deployment(started) if started else None
    )


def state(model: PipelineState) -> pb.PipelineState:
    return pb.PipelineState(
        pipeline=pipeline(model.pipeline),
        active=deployment(model.active) if model.active else None,
        queue=_fitting(map(deployment, model.queue)),
        pending_count=model.pending_count,
        stages=[
            pb.StageState(
                name=stage.name,
                deployment_id=_id(stage.deployment_id),
                version=stage.version,
                seq=stage.seq,
                completed_at=_timestamp(stage.completed_at),
            )
            for stage in model.stages
        ],
    )


def on_busy(request: pb.TriggerDeploymentRequest) -> str:
    """The name of the value; a number that is none stays a number."""
    return _ON_BUSY.get(request.on_busy) or str(request.on_busy)


def expiry(request: pb.LockPipelineRequest) -> datetime | None:
    """Raises InvalidFields for a time that is none."""
    if not request.HasField("expires_at"):
        return None
    try:
        return request.expires_at.ToDatetime(UTC)
    except ValueError:
        rule = "must be a time between the years 1 and 9999"
        raise InvalidFields([Violation("expires_at", rule)]) from None


def _event(model: LoggedEvent) -> pb.Event:
    return pb.Event(
        pipeline_name=model.pipeline_name,
        event_no=model.event_no,
        type=pb.Event.Type.Value(model.type),
        deployment_id=_id(model.deployment_id),
        stage=model.stage,
        from_status=_STATUSES[model.from_status or "STATUS_UNSPECIFIED"],
        to_status=_STATUSES[model.to_status or "STATUS_UNSPECIFIED"],
        actor=model.actor,
        reason=model.reason,
        request_id=model.request_id,
        created_at=_timestamp(model.created_at),
    )


def _lock(lock: Lock | None) -> pb.Lock | None:
    if lock is None:
        return None
    return pb.Lock(
        owner=lock.owner,
        reason=lock.reason,
        locked_at=_timestamp(lock.locked_at),
        expires_at=_timestamp(lock.expires_at),
    )


def _cause(model: Deployment) -> pb.Cause | None:
    if model.cause:
        return pb.Cause(code=pb.Cause.Code.Value(model.cause), message=model.cause_message)
    return _waits(model.waiting) if model.waiting else None


def _waits(waiting: Waiting) -> pb.Cause:
    lock = (
        f"the pipeline is locked{by(waiting.lock_owner)} {until(waiting.lock_expires_at)}:"
        f" {waiting.lock_reason}"
    )
    if waiting.active:
        active = waiting.active
        message = busy_with(active.id, active.version, active.stage, active.since)
        return pb.Cause(code=pb.Cause.BUSY, message=f"{message}; {lock}" if waiting.locked else message)
    if waiting.locked:
        return pb.Cause(code=pb.Cause.LOCKED, message=lock)
    return pb.Cause(
        code=pb.Cause.NOT_RESUMED,
        message="the lock is over, and nobody has resumed the line: the next TriggerDeployment on the"
        " pipeline starts its head, or UnlockPipeline with start_next",
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    timestamp = Timestamp()
    _set(timestamp, time)
    return timestamp


def _set(timestamp: Timestamp, time: datetime) -> None:
    """As FromDatetime, in a quarter of the time: a deployment has a dozen of them."""
    since = time - _EPOCH
    timestamp.seconds = since.days * 86_400 + since.seconds
    timestamp.nanos = since.microseconds * 1000


def _id(id: UUID | None) -> str:
    return "" if id is None else str(id)
