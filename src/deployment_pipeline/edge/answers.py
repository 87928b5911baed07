"""A refusal as a gRPC status: its code, and the details that clients read by program."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, NoReturn, TypeAlias

import grpc
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

from deployment_pipeline import refusals
from deployment_pipeline.refusals import Refusal, Violation

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

DOMAIN = "dp.v1"
DETAILS_KEY = "grpc-status-details-bin"
# Of gRPC's retry policy (gRFC A6).
PUSHBACK_KEY = "grpc-retry-pushback-ms"
RETRY_AFTER_SECONDS = 1

# A client refuses a status whose metadata exceeds 8 KiB; the message counts too, with every byte that
# is not ASCII written as three.
MAX_MESSAGE_BYTES = 900
MAX_FACT_BYTES = 250
MAX_VIOLATIONS_BYTES = 1800

CODES: dict[type[Refusal], StatusCode] = {
    refusals.InvalidFields: StatusCode.INVALID_ARGUMENT,
    refusals.RequestIdReused: StatusCode.INVALID_ARGUMENT,
    refusals.PipelineNotFound: StatusCode.NOT_FOUND,
    refusals.DeploymentNotFound: StatusCode.NOT_FOUND,
    refusals.PipelineExists: StatusCode.ALREADY_EXISTS,
    refusals.PipelineBusy: StatusCode.FAILED_PRECONDITION,
    refusals.PipelineLocked: StatusCode.FAILED_PRECONDITION,
    refusals.PipelineNotLocked: StatusCode.FAILED_PRECONDITION,
    refusals.NoKnownGood: StatusCode.FAILED_PRECONDITION,
    refusals.QueueFull: StatusCode.RESOURCE_EXHAUSTED,
    refusals.DeploymentNotInProgress: StatusCode.FAILED_PRECONDITION,
    refusals.DeploymentEnded: StatusCode.FAILED_PRECONDITION,
    refusals.StageMismatch: StatusCode.ABORTED,
    refusals.RevisionMismatch: StatusCode.ABORTED,
    refusals.LockMismatch: StatusCode.ABORTED,
    refusals.RetryWithoutToken: StatusCode.ABORTED,
    refusals.TokenRequired: StatusCode.INVALID_ARGUMENT,
    refusals.UpgradeNotFinished: StatusCode.FAILED_PRECONDITION,
    refusals.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    refusals.RateLimited: StatusCode.RESOURCE_EXHAUSTED,
    refusals.Unauthenticated: StatusCode.UNAUTHENTICATED,
    refusals.PermissionDenied: StatusCode.PERMISSION_DENIED,
    # Meshes retry UNAVAILABLE on their own: it is only ever said when nothing happened.
    refusals.StoreUnavailable: StatusCode.UNAVAILABLE,
    refusals.ShuttingDown: StatusCode.UNAVAILABLE,
    refusals.KeysUnavailable: StatusCode.UNAVAILABLE,
    refusals.OutcomeUnknown: StatusCode.UNKNOWN,
}


class Answer(NamedTuple):
    """What a caller gets in the place of a response. details: the value of DETAILS_KEY."""

    code: StatusCode
    message: str
    details: bytes
    facts: Mapping[str, str]  # each short enough for metadata and for a log line
    pushback_ms: int | None = None  # before that, a client library must not send the call again


# What the first attempt at a call can be the reason for.
MAY_BE_OWN = (
    refusals.PipelineBusy,
    refusals.PipelineNotLocked,
    refusals.LockMismatch,
    refusals.DeploymentEnded,
    refusals.StageMismatch,
    refusals.RevisionMismatch,
)


def of(refusal: Refusal, *, is_blind_repeat: bool = False) -> Answer:
    """is_blind_repeat: the call was marked as sent before, and has no request_id to find what that did."""
    may_be_own = is_blind_repeat and isinstance(refusal, MAY_BE_OWN)
    if isinstance(refusal, refusals.PipelineBusy):
        return _busy(may_be_own, *_busy_fields(refusal))
    return _of(refusal, may_be_own)


_busy_fields = attrgetter(*(field.name for field in fields(refusals.PipelineBusy)))


@lru_cache(maxsize=1024)
def _busy(may_be_own: bool, *fields: Any) -> Answer:
    """On a hot pipeline this one is said thousands of times a second."""
    return _of(refusals.PipelineBusy(*fields), may_be_own)


def _of(refusal: Refusal, may_be_own: bool) -> Answer:
    text, told = str(refusal), refusal.facts()
    if may_be_own:
        text += "; this call was sent before, so it may have met what its own first attempt did"
        told |= {"may_be_own": "true"}
    message = _cut(text, MAX_MESSAGE_BYTES)
    facts = {name: _cut(fact, MAX_FACT_BYTES) for name, fact in told.items()}
    details = _details(refusal, message)
    answer = _answer(CODES[type(refusal)], message, refusal.reason, facts, *details)
    if isinstance(refusal, refusals.RateLimited):
        return answer._replace(pushback_ms=refusal.retry_ms)
    return answer


def internal(incident: str) -> Answer:
    """A bug: a fixed text, and an id that is in the log beside the traceback."""
    message = f"internal error; the server's log has it under incident {incident}"
    return _answer(StatusCode.INTERNAL, message, "INTERNAL", {"incident": incident})


def _details(refusal: Refusal, message: str) -> list[Message]:
    match refusal:
        case refusals.InvalidFields(violations):
            return [_bad_request(violations)]
        case refusals.PipelineNotFound(name) | refusals.PipelineExists(name):
            return [ResourceInfo(resource_type="dp.v1.Pipeline", resource_name=name)]
        case refusals.DeploymentNotFound(id):
            return [ResourceInfo(resource_type="dp.v1.Deployment", resource_name=str(id))]
        case (
            refusals.PipelineBusy(subject)
            | refusals.PipelineLocked(subject)
            | refusals.PipelineNotLocked(subject)
            | refusals.LockMismatch(subject)
            | refusals.NoKnownGood(subject)
        ):
            return [_precondition(refusal.reason, f"pipelines/{subject}", message)]
        case refusals.DeploymentNotInProgress(id) | refusals.DeploymentEnded(id):
            return [_precondition(refusal.reason, f"deployments/{id}", message)]
        case (
            refusals.QueueFull()
            | refusals.Overloaded()
            | refusals.StoreUnavailable()
            | refusals.ShuttingDown()
            | refusals.KeysUnavailable()
        ):
            return [RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_SECONDS))]
        case refusals.RateLimited(retry_ms):
            delay = Duration()
            delay.FromMilliseconds(retry_ms)
            return [RetryInfo(retry_delay=delay)]
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


async def abort(context: Context, answer: Answer) -> NoReturn:
    """End the call with it. Raises AbortError."""
    metadata: list[tuple[str, str | bytes]] = [(DETAILS_KEY, answer.details)]
    if answer.pushback_ms is not None:
        metadata.append((PUSHBACK_KEY, str(answer.pushback_ms)))
    try:
        await context.abort(answer.code, answer.message, trailing_metadata=tuple(metadata))
    except grpc.aio.AbortError as aborted:
        # The call's state keeps it, and it the call's frames: a cycle for the garbage collector, for each
        # refusal. Nobody looks at its traceback after this step.
        asyncio.get_running_loop().call_soon(aborted.with_traceback, None)
        raise
