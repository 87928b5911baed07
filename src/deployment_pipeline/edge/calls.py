"""The outermost layer of every call: its time, its log line, and its errors as statuses.

What holds for every call is a step here, each a function of its own; `_unary` and `_stream` are their order.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, TypeAlias
from uuid import uuid4

import grpc
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from deployment_pipeline import call, logs, metrics
from deployment_pipeline.edge import answers, attempts
from deployment_pipeline.edge.answers import Context, abort
from deployment_pipeline.edge.arrivals import Arrivals
from deployment_pipeline.edge.entrance import Entrance
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.edge.unsent import LONG_BYTES, Unsent
from deployment_pipeline.refusals import InvalidFields, Overloaded, Refusal, ShuttingDown, Violation
from dp.v1 import deployment_pipeline_pb2 as pb

# Calls under way in this process; more are refused at once instead of piling up.
MAX_CALLS = 4096
# How the names of those methods begin that change nothing (AIP-131, AIP-132).
READS = ("Get", "List")

log = structlog.get_logger()

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Facts: TypeAlias = Mapping[str, Any]


class _Unreadable:
    """In place of a request whose bytes are not a message of its type."""


class Calls:
    """The service's methods as gRPC gets them. Wrapped, not intercepted: gRPC asks an interceptor again for
    every call, at the price of several system calls."""

    def __init__(self, entrance: Entrance, attempt_id_headers: Sequence[str]) -> None:
        """attempt_id_headers: see `attempts.attempt`."""
        self._entrance = entrance
        self._attempt_id_headers = attempt_id_headers
        self._services: dict[str, dict[str, Handler]] = {}
        self._arrivals = Arrivals()
        self._unsent = Unsent()
        self._running: set[Context] = set()
        self._idle = asyncio.Event()
        self._draining = False
        # Until when every call must have ended, on the monotonic clock, once the server stops.
        self._ends_at = math.inf

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The generated code gives its methods here and below; once is enough."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        for method, handler in handlers.items():
            metrics.expect(service, method, streams=handler.response_streaming)
        self._services[service] = {
            method: self._wrap(method, handler) for method, handler in handlers.items()
        }

    def register(self, server: grpc.aio.Server) -> None:
        """Give them to gRPC. A registered method has a queue of its own: a flood of one does not delay the
        others."""
        for service, handlers in self._services.items():
            server.add_registered_method_handlers(service, handlers)

    def end_by(self, ends_at: float) -> None:
        """No call gets longer than that, on the monotonic clock."""
        self._ends_at = ends_at

    def refuse_new_calls(self) -> None:
        """And those whose request is not here yet."""
        self._draining = True
        self._arrivals.give_up(ShuttingDown())

    async def drain(self) -> None:
        """Wait for the calls that are running: grpc's own stop does not wait for their clean-up."""
        while self._running:
            self._idle.clear()
            await self._idle.wait()

    def _wrap(self, method: str, handler: Handler) -> Handler:
        deserialize = handler.request_deserializer

        def read(data: bytes) -> Any:
            try:
                return deserialize(data) if deserialize else data
            except DecodeError:
                return _Unreadable()

        # As if they took a stream of requests: see `arrivals`.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                partial(self._stream, method, handler.unary_stream),  # type: ignore[arg-type]  # an aio handler
                request_deserializer=read,
                response_serializer=handler.response_serializer,
            )
        return grpc.stream_unary_rpc_method_handler(
            partial(self._unary, method, handler.unary_unary, handler.response_serializer),  # type: ignore[arg-type]  # an aio handler
            request_deserializer=read,
        )

    async def _unary(
        self,
        method: str,
        handle: Callable[[Any, Context], Awaitable[Any]],
        serialize: Callable[[Any], bytes],
        _: object,
        context: Context,
    ) -> bytes:
        request = await self._arrivals.request(context)
        started, code = time.perf_counter(), grpc.StatusCode.CANCELLED
        said: Facts = {}
        try:
            try:
                await self._admit(method, request, context)
                response = await handle(request, context)
                data = serialize(response)
                if len(data) > LONG_BYTES and method.startswith(READS):
                    self._unsent.add(len(data), context)
                code, said = grpc.StatusCode.OK, _about(request, response, context)
                return data
            except Exception as error:
                answer, said = _explained(method, request, error)
                code = answer.code
            # Not where the error is still being handled: it would live on as the context of AbortError.
            await abort(context, answer)
        finally:
            self._conclude(method, started, code, said, context)

    async def _stream(
        self,
        method: str,
        handle: Callable[[Any, Context], AsyncIterator[Any]],
        _: object,
        context: Context,
    ) -> AsyncIterator[Any]:
        request = await self._arrivals.request(context)
        started, code, sent = time.perf_counter(), grpc.StatusCode.CANCELLED, 0
        said: Facts = {}
        try:
            try:
                await self._admit(method, request, context)
                async for response in handle(request, context):
                    yield response
                    sent += 1
                code = grpc.StatusCode.OK
                return
            except Exception as error:
                answer, said = _explained(method, request, error)
                code = answer.code
            await abort(context, answer)
        finally:
            self._conclude(method, started, code, {**said, "messages": sent}, context)

    async def _admit(self, method: str, request: object, context: Context) -> None:
        """Begin the call's time, and refuse what is not to be served."""
        metrics.call_began(method)
        left = context.time_remaining()
        if self._ends_at < math.inf:
            until_end = self._ends_at - time.monotonic()
            left = until_end if left is None else min(left, until_end)
        call.begin(left, attempts.attempt(context.invocation_metadata() or (), self._attempt_id_headers))
        if self._draining:
            raise ShuttingDown
        if isinstance(request, Refusal):
            raise request
        if len(self._running) >= MAX_CALLS:
            raise Overloaded
        self._running.add(context)
        await self._entrance.admit(method, request, context)
        if isinstance(request, _Unreadable):
            rule = f"is not a {method} request: its bytes are not such a message, or a text is not UTF-8"
            raise InvalidFields([Violation("request", rule)])

    def _conclude(
        self, method: str, started: float, code: grpc.StatusCode, said: Facts, context: Context
    ) -> None:
        """code: CANCELLED if the caller left or its time ran out: there is nobody to answer."""
        self._running.discard(context)
        if not self._running:
            self._idle.set()
        seconds = time.perf_counter() - started
        metrics.call_ended(method, code.name, seconds)
        logs.call(
            method=method,
            code=code.name,
            ms=round(seconds * 1000, 2),
            peer=context.peer(),
            **_names(call.attempt(), call.caller()),
            **said,
        )


def _explained(method: str, request: object, error: Exception) -> tuple[answers.Answer, Facts]:
    """An error as its caller gets it, and as the log line has it."""
    if isinstance(error, Refusal):
        is_blind_repeat = call.attempt().is_repeat and not getattr(request, "request_id", "")
        answer = answers.of(error, is_blind_repeat=is_blind_repeat)
        metrics.refused(error.reason, error.served_from)
        said = {"reason": error.reason, **answer.facts}
        if isinstance(error.__cause__, NotProven):
            said["why"] = str(error.__cause__)
        return answer, {"refusal": said}
    incident = uuid4().hex
    log.error("a bug", incident=incident, method=method, exc_info=error)
    answer = answers.internal(incident)
    return answer, answer.facts


def _names(attempt: call.Attempt, caller: call.Caller) -> Facts:
    """Who called, and what others call this call, for people who look for it in several logs."""
    if attempt is call.UNMARKED and not caller.actor:
        return {}
    said = {
        "principal": caller.actor,
        "via": caller.via,
        "attempt_id": attempt.id,
        "trace_id": attempt.trace_id,
        "retry": attempt.is_repeat,
    }
    return {name: value for name, value in said.items() if value}


_STATUSES = {number: name for name, number in pb.DeploymentStatus.Status.items()}
_REQUEST_FIELDS = ("pipeline_name", "deployment_id", "request_id")


@cache
def _fields(request: Descriptor) -> Sequence[str]:
    return [field for field in _REQUEST_FIELDS if field in request.fields_by_name]


def _about(request: Message, response: Message, context: Context) -> dict[str, Any]:
    """What the call was about, for people who look for it in the log."""
    said = {field: value for field in _fields(request.DESCRIPTOR) if (value := getattr(request, field))}
    if isinstance(response, pb.DeploymentStatus):
        said |= {
            "pipeline_name": response.pipeline_name,
            "deployment_id": response.id,
            "version": response.version,
            "stage": response.current_stage,
            "status": _STATUSES[response.status],
        }
    elif name := getattr(request, "name", ""):
        said["pipeline_name"] = name
    if context.trailing_metadata():
        said["replayed"] = True
    return said
