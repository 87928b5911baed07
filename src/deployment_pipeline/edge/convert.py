"""Requests to what the engine takes, and what it answers to messages. Total, and without I/O."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from itertools import zip_longest
from operator import attrgetter
from typing import Any, TypeVar, get_type_hints
from uuid import UUID

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from deployment_pipeline.commands import Command, UpdatePipeline
from deployment_pipeline.fields import DEFAULT_MAX_PENDING, MAX_PAGE_BYTES, UPDATABLE, UUID_TEXT
from deployment_pipeline.model import (
    CauseCode,
    Deployment,
    HistoryFilter,
    Lock,
    LoggedEvent,
    OnBusy,
    Page,
    Pipeline,
    PipelineState,
    Waiting,
)
from deployment_pipeline.refusals import busy_with, by, until
from deployment_pipeline.states import STATUSES, EventType, Status
from dp.v1 import deployment_pipeline_pb2 as pb

M = TypeVar("M", bound=Message)
T = TypeVar("T")
C = TypeVar("C", bound=Command)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The enums, by what the proto calls them. What this release does not know is UNSPECIFIED: 0.
_STATUSES: dict[Status, Any] = {status: getattr(pb.DeploymentStatus, status, 0) for status in Status}
_STATUSES_BY_NUMBER: Mapping[int, Any] = {_STATUSES[status]: status for status in STATUSES}
_EVENT_TYPES: dict[EventType, Any] = {type: getattr(pb.Event, type, 0) for type in EventType}
_CAUSES: dict[CauseCode, Any] = {code: getattr(pb.Cause, code, 0) for code in CauseCode}
_ON_BUSY = {getattr(pb.TriggerDeploymentRequest, on_busy): on_busy for on_busy in OnBusy}
# Fields of a deployment that its message has under the same name and type.
_AS_THEY_ARE = [
    name
    for name, hint in get_type_hints(Deployment).items()
    if hint in (str, int) and name in pb.DeploymentStatus.DESCRIPTOR.fields_by_name
]


# Requests. A value that is not of its field's type (a number without a name in the enum, a text that is not a
# UUID) stays as it came: the field's rule refuses it, together with all other fields that are broken.


def command(kind: type[C], request: Message) -> C:
    """Each field by its name; those that the request leaves out keep their defaults."""
    of: Any = kind
    plain, readers = _readers(of, request.DESCRIPTOR)
    given = {name: getattr(request, name) for name in plain}
    for name, read in readers:
        if (value := read(request)) is not None:
            given[name] = value
    return kind(**given)


@cache
def _readers(
    kind: Any, request: Descriptor
) -> tuple[Sequence[str], Sequence[tuple[str, Callable[[Any], Any]]]]:
    """The fields that are taken as they are, and what reads each of the others."""
    hints = get_type_hints(kind)
    readers = {f.name: _reader(request.fields_by_name[f.name], hints[f.name]) for f in fields(kind)}
    plain = [name for name, reader in readers.items() if reader is None]
    return plain, [(name, reader) for name, reader in readers.items() if reader]


def _reader(field: Any, hint: Any) -> Callable[[Any], Any] | None:
    """None: the field's value is taken as it is. A reader answers None for what the request leaves out."""
    value = attrgetter(field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        return lambda request: dict(labels) if (labels := value(request)) else None
    if field.is_repeated:
        return lambda request: list(value(request))
    if field.message_type:
        return lambda request: _time(value(request)) if request.HasField(field.name) else None
    if field.enum_type:
        return lambda request: _ON_BUSY.get(number, number) if (number := value(request)) else None
    if hint is UUID:
        return lambda request: UUID(text) if UUID_TEXT.fullmatch(text := value(request)) else text
    if field.has_presence:
        return lambda request: value(request) if request.HasField(field.name) else None
    return None


def _time(timestamp: Timestamp) -> datetime | Timestamp:
    try:
        return timestamp.ToDatetime(UTC)
    except ValueError:
        return timestamp


def update(request: pb.UpdatePipelineRequest) -> UpdatePipeline:
    """With the fields of the mask or, without one, those that are not empty."""
    paths = list(request.update_mask.paths)
    if "*" in paths:
        paths = list(UPDATABLE)
    elif not paths:
        paths = [field.name for field, _ in request.ListFields() if field.name in UPDATABLE]
    given: dict[str, Any] = {
        "stages": list(request.stages),
        "description": request.description,
        "labels": dict(request.labels),
        "max_pending": request.max_pending if request.HasField("max_pending") else DEFAULT_MAX_PENDING,
    }
    return UpdatePipeline(
        name=request.name,
        update_mask=sorted(set(paths)),
        expected_revision=request.expected_revision,
        request_id=request.request_id,
        **{path: given[path] for path in paths if path in given},
    )


def history_filter(request: pb.GetHistoryRequest) -> HistoryFilter:
    return HistoryFilter(
        tuple(_STATUSES_BY_NUMBER.get(number, str(number)) for number in request.statuses),
        request.reached_stage,
        request.completed_stage,
    )


# Answers.


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
    """Written in place, for protobuf copies every message that it is given as a field: that takes three
    times as long as all the rest."""
    for name in _AS_THEY_ARE:
        setattr(message, name, getattr(model, name))
    message.id = str(model.id)
    message.current_stage = model.current_stage
    message.status = _STATUSES[model.status]
    message.total_stages = len(model.stages)
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
        message.queue_position = model.waiting.queue_position
    if cause := _cause(model):
        message.cause.CopyFrom(cause)
    _write_stages(message, model)
    return message


def _write_stages(message: pb.DeploymentStatus, model: Deployment) -> None:
    # A stage is left when the next one is entered or the deployment ends; those to come have no times.
    left = (*model.stage_entered_at[1:], model.completed_at)
    for name, since, ended in zip_longest(model.stages, model.stage_entered_at, left):
        run = message.stages.add()
        run.name = name
        if since:
            _set(run.entered_at, since)
            if ended:
                _set(run.left_at, ended)


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
    return pb.ListEventsResponse(events=messages, next_page_token=_next(page, len(messages)))


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
    return page.next_token if shown == len(page.items) else page.token_after(page.items[shown - 1])


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
                version=stage.version or "",
                seq=stage.seq or 0,
                completed_at=_timestamp(stage.completed_at),
            )
            for stage in model.stages
        ],
    )


def _event(model: LoggedEvent) -> pb.Event:
    return pb.Event(
        pipeline_name=model.pipeline_name,
        event_no=model.event_no,
        type=_EVENT_TYPES[model.type],
        deployment_id=_id(model.deployment_id),
        stage=model.stage or "",
        from_status=None if model.from_status is None else _STATUSES[model.from_status],
        to_status=None if model.to_status is None else _STATUSES[model.to_status],
        actor=model.actor,
        via=model.via,
        reason=model.reason,
        request_id=model.request_id or "",
        created_at=_timestamp(model.created_at),
    )


def _lock(lock: Lock | None) -> pb.Lock | None:
    """Absent once it has expired."""
    if lock is None or not lock.stands:
        return None
    return pb.Lock(
        lock_no=lock.no,
        owner=lock.owner,
        locked_by=lock.locked_by,
        reason=lock.reason,
        locked_at=_timestamp(lock.locked_at),
        expires_at=_timestamp(lock.expires_at),
    )


def _cause(model: Deployment) -> pb.Cause | None:
    if model.cause:
        return pb.Cause(code=_CAUSES[model.cause], message=model.cause_message)
    return _waits(model.waiting) if model.waiting else None


def _waits(waiting: Waiting) -> pb.Cause:
    lock = ""
    if waiting.lock_owner is not None:
        lock = (
            f"the pipeline is locked{by(waiting.lock_owner)} {until(waiting.lock_expires_at)}:"
            f" {waiting.lock_reason}"
        )
    if waiting.active_id:
        busy = busy_with(
            waiting.active_id, waiting.active_version, waiting.active_stage, waiting.active_since
        )
        return pb.Cause(code=pb.Cause.BUSY, message=f"{busy}; {lock}" if lock else busy)
    if lock:
        return pb.Cause(code=pb.Cause.LOCKED, message=lock)
    return pb.Cause(
        code=pb.Cause.NOT_RESUMED,
        message="the lock is gone, but nothing has resumed the queue: the next TriggerDeployment on the"
        " pipeline starts its head, and so does UnlockPipeline with start_next",
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    timestamp = Timestamp()
    _set(timestamp, time)
    return timestamp


def _set(timestamp: Timestamp, time: datetime) -> None:
    """Like FromDatetime, in a quarter of the time: a deployment has a dozen of them."""
    since = time - _EPOCH
    timestamp.seconds = since.days * 86_400 + since.seconds
    timestamp.nanos = since.microseconds * 1000


def _id(id: UUID | None) -> str:
    return "" if id is None else str(id)
