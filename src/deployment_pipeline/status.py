"""A refusal as a gRPC status: its code, and the details that clients read by program."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    ResourceInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from deployment_pipeline import errors
from deployment_pipeline.errors import Refusal, Violation

DOMAIN = "dp.v1"
DETAILS_KEY = "grpc-status-details-bin"
RETRY_AFTER_SECONDS = 1

# A client refuses a status whose metadata exceeds 8 KiB; the message counts too, with every byte that
# is not ASCII written as three.
MAX_MESSAGE_BYTES = 900
MAX_FACT_BYTES = 250
MAX_VIOLATIONS_BYTES = 1800

CODES: dict[type[Refusal], StatusCode] = {
    errors.InvalidFields: StatusCode.INVALID_ARGUMENT,
    errors.RequestIdReused: StatusCode.INVALID_ARGUMENT,
    errors.PipelineNotFound: StatusCode.NOT_FOUND,
    errors.DeploymentNotFound: StatusCode.NOT_FOUND,
    errors.PipelineExists: StatusCode.ALREADY_EXISTS,
    errors.PipelineBusy: StatusCode.FAILED_PRECONDITION,
    errors.PipelineLocked: StatusCode.FAILED_PRECONDITION,
    errors.PipelineNotLocked: StatusCode.FAILED_PRECONDITION,
    errors.NoKnownGood: StatusCode.FAILED_PRECONDITION,
    errors.QueueFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.DeploymentNotInProgress: StatusCode.FAILED_PRECONDITION,
    errors.DeploymentEnded: StatusCode.FAILED_PRECONDITION,
    errors.StageMismatch: StatusCode.ABORTED,
    errors.RevisionMismatch: StatusCode.ABORTED,
    errors.RetryWithoutToken: StatusCode.ABORTED,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    # Meshes send UNAVAILABLE calls again by themselves: only ever said when nothing happened.
    errors.StoreUnavailable: StatusCode.UNAVAILABLE,
    errors.ShuttingDown: StatusCode.UNAVAILABLE,
    errors.OutcomeUnknown: StatusCode.UNKNOWN,
}


class Answer(NamedTuple):
    """What a caller gets in the place of a response. details: the value of DETAILS_KEY."""

    code: StatusCode
    message: str
    details: bytes
    facts: Mapping[str, str]  # each short enough for metadata and for a log line


def of(refusal: Refusal) -> Answer:
    if isinstance(refusal, errors.PipelineBusy):
        return _busy(*vars(refusal).values())
    return _of(refusal)


@lru_cache(maxsize=1024)
def _busy(*fields: Any) -> Answer:
    """On a hot pipeline this one is said thousands of times a second."""
    return _of(errors.PipelineBusy(*fields))


def _of(refusal: Refusal) -> Answer:
    message = _cut(str(refusal), MAX_MESSAGE_BYTES)
    facts = {name: _cut(fact, MAX_FACT_BYTES) for name, fact in refusal.facts().items()}
    details = _details(refusal, message)
    return _answer(CODES[type(refusal)], message, refusal.reason, facts, *details)


def internal(incident: str) -> Answer:
    """A bug: a fixed text, and an id that is in the log beside the traceback."""
    message = f"internal error; the server's log has it under incident {incident}"
    return _answer(StatusCode.INTERNAL, message, "INTERNAL", {"incident": incident})


def _details(refusal: Refusal, message: str) -> list[Message]:
    match refusal:
        case errors.InvalidFields(violations):
            return [_bad_request(violations)]
        case errors.PipelineNotFound(name) | errors.PipelineExists(name):
            return [ResourceInfo(resource_type="dp.v1.Pipeline", resource_name=name)]
        case errors.DeploymentNotFound(id):
            return [ResourceInfo(resource_type="dp.v1.Deployment", resource_name=str(id))]
        case (
            errors.PipelineBusy(subject)
            | errors.PipelineLocked(subject)
            | errors.PipelineNotLocked(subject)
            | errors.NoKnownGood(subject)
        ):
            return [_precondition(refusal.reason, f"pipelines/{subject}", message)]
        case errors.DeploymentNotInProgress(id) | errors.DeploymentEnded(id):
            return [_precondition(refusal.reason, f"deployments/{id}", message)]
        case errors.QueueFull() | errors.Overloaded() | errors.StoreUnavailable() | errors.ShuttingDown():
            return [RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_SECONDS))]
        case _:
            return []


def _bad_request(violations: Sequence[Violation]) -> BadRequest:
    """All of them, or as many as fit and how many more there are."""
    bad = BadRequest()
    for i, v in enumerate(violations):
        if bad.ByteSize() > MAX_VIOLATIONS_BYTES:
            bad.field_violations.add(field="", description=f"and {len(violations) - i} more")
            break
        bad.field_violations.add(
            field=_cut(v.field, MAX_FACT_BYTES), description=_cut(v.problem, MAX_FACT_BYTES)
        )
    return bad


def _cut(text: str, limit: int) -> str:
    raw = text.encode()
    return text if len(raw) <= limit else raw[: limit - 3].decode(errors="ignore") + "…"


def _precondition(kind: str, subject: str, description: str) -> PreconditionFailure:
    violation = PreconditionFailure.Violation(type=kind, subject=subject, description=description)
    return PreconditionFailure(violations=[violation])


def _answer(
    code: StatusCode, message: str, reason: str, facts: Mapping[str, str], *details: Message
) -> Answer:
    status = Status(code=code.value[0], message=message)
    for detail in (ErrorInfo(reason=reason, domain=DOMAIN, metadata=facts), *details):
        status.details.add().Pack(detail)
    return Answer(code, message, status.SerializeToString(), facts)
