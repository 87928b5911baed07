"""The outermost layer of every call: its deadline, its log line, and its errors as statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, TypeAlias
from uuid import uuid4

import grpc
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from deployment_pipeline import deadline, logs
from deployment_pipeline.edge import answers
from deployment_pipeline.refusals import InvalidFields, Overloaded, Refusal, ShuttingDown, Violation
from dp.v1 import deployment_pipeline_pb2 as pb

log = structlog.get_logger()

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


# Calls under way in this process; more are refused at once instead of piling up.
MAX_CALLS = 4096


class _Unreadable:
    """In the place of a request whose bytes are not a message of its type."""


class Calls(grpc.GenericRpcHandler):
    """The service's methods as gRPC gets them. Wrapped, not intercepted: an interceptor is asked anew for
    every call, at the price of several system calls."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._running = 0
        self._idle = asyncio.Event()
        self._draining = False

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The generated code gives its methods here and below; once is enough."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        for method, handler in handlers.items():
            self._handlers[f"/{service}/{method}"] = self._wrap(method, handler)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        return self._handlers.get(handler_call_details.method)

    def refuse_new_calls(self) -> None:
        self._draining = True

    async def drain(self) -> None:
        """Wait for the calls that are running: grpc's own stop does not wait for their clean-up."""
        while self._running:
            self._idle.clear()
            await self._idle.wait()

    def _wrap(self, method: str, handler: Handler) -> Handler:
        deserialize = handler.request_deserializer
        behavior: Callable[[Any, Context], Awaitable[Any]] = handler.unary_unary  # type: ignore[assignment]

        def read(data: bytes) -> Any:
            try:
                return deserialize(data) if deserialize else data
            except DecodeError:
                return _Unreadable()

        return grpc.unary_unary_rpc_method_handler(
            partial(self._serve, method, behavior),
            request_deserializer=read,
            response_serializer=handler.response_serializer,
        )

    async def _serve(
        self,
        method: str,
        behavior: Callable[[Any, Context], Awaitable[Any]],
        request: Any,
        context: Context,
    ) -> Any:
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        said: Mapping[str, Any] = {}
        deadline.start(context.time_remaining())
        self._running += 1
        try:
            try:
                if self._draining:
                    raise ShuttingDown
                if self._running > MAX_CALLS:
                    raise Overloaded
                if isinstance(request, _Unreadable):
                    rule = f"is not a {method} request: the bytes are no such message, or a text is not UTF-8"
                    raise InvalidFields([Violation("request", rule)])
                response = await behavior(request, context)
                said = _subject(request, response, context)
                return response
            except Refusal as refusal:
                answer = answers.of(refusal)
                code, said = answer.code, {"refusal": {"reason": refusal.reason, **answer.facts}}
            except asyncio.CancelledError:
                # The caller left, or its time is over: there is nobody to answer.
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception:
                incident = uuid4().hex
                log.exception("a bug", incident=incident, method=method)
                answer = answers.internal(incident)
                code, said = answer.code, answer.facts
            # Not where the refusal is still being handled: it would live on as the context of AbortError.
            await _abort(context, answer)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
            logs.call(
                method=method,
                code=code.name,
                ms=round((time.perf_counter() - started) * 1000, 2),
                peer=context.peer(),
                **said,
            )


async def _abort(context: Context, answer: answers.Answer) -> None:
    metadata = ((answers.DETAILS_KEY, answer.details),)
    try:
        await context.abort(answer.code, answer.message, trailing_metadata=metadata)
    except grpc.aio.AbortError as aborted:
        # The call's state keeps it, and it the call's frames: a cycle for the garbage collector, for each
        # refusal. Nobody looks at its traceback once this step is over.
        asyncio.get_running_loop().call_soon(aborted.with_traceback, None)
        raise


_STATUSES = {number: name for name, number in pb.DeploymentStatus.Status.items()}
_REQUEST_FIELDS = ("pipeline_name", "deployment_id", "request_id")


@cache
def _fields(request: Descriptor) -> Sequence[str]:
    return [field for field in _REQUEST_FIELDS if field in request.fields_by_name]


def _subject(request: Message, response: Message, context: Context) -> dict[str, Any]:
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
