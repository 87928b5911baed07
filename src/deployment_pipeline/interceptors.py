"""The outermost layer of every call: its deadline, its log line, and its errors as statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from uuid import uuid4

import grpc
import structlog
from google.protobuf.message import DecodeError

from deployment_pipeline import deadline, status
from deployment_pipeline.errors import InvalidFields, Overloaded, Refusal, ShuttingDown, Violation
from dp.v1 import deployment_pipeline_pb2 as pb

log = structlog.get_logger()

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


# Calls under way in this process; more are refused at once instead of piling up.
MAX_CALLS = 4096


class _Unreadable:
    """In the place of a request whose bytes are not a message of its type."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the unary calls of the service; streaming ones (health, reflection) pass as they are."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"
        self._wrapped: dict[str, Handler] = {}
        self._running: set[asyncio.Future[None]] = set()
        self._draining = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None or not method.startswith(self._prefix):
                return handler
            self._wrapped[method] = self._wrap(method.removeprefix(self._prefix), handler)
        return self._wrapped[method]

    def refuse_new_calls(self) -> None:
        self._draining = True

    async def drain(self) -> None:
        """Wait for the calls that are running: grpc's own stop does not wait for their clean-up."""
        while self._running:
            await asyncio.wait(self._running)

    def _wrap(self, method: str, handler: Handler) -> Handler:
        deserialize = handler.request_deserializer
        behavior: Callable[[Any, Context], Awaitable[Any]] = handler.unary_unary  # type: ignore[assignment]

        def read(data: bytes) -> Any:
            try:
                return deserialize(data) if deserialize else data
            except DecodeError:
                return _Unreadable()

        async def call(request: Any, context: Context) -> Any:
            over = asyncio.get_running_loop().create_future()
            self._running.add(over)
            try:
                return await self._serve(method, behavior, request, context)
            finally:
                self._running.discard(over)
                over.set_result(None)

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=read, response_serializer=handler.response_serializer
        )

    async def _serve(
        self,
        method: str,
        behavior: Callable[[Any, Context], Awaitable[Any]],
        request: Any,
        context: Context,
    ) -> Any:
        started = time.perf_counter()
        code, said = grpc.StatusCode.OK, {}
        deadline.start(context.time_remaining())
        try:
            if self._draining:
                raise ShuttingDown
            if len(self._running) > MAX_CALLS:
                raise Overloaded
            if isinstance(request, _Unreadable):
                rule = f"is not a {method} request: the bytes are no such message, or a text is not UTF-8"
                raise InvalidFields([Violation("request", rule)])
            response = await behavior(request, context)
            said = _subject(request, response, context)
            return response
        except Refusal as refusal:
            code, message, details = status.of(refusal)
            said = {"refusal": {"reason": refusal.reason, **status.facts(refusal)}}
            await self._abort(context, code, message, details)
        except asyncio.CancelledError:
            # The caller left, or its time is over: there is nobody to answer.
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            incident = uuid4().hex
            log.exception("a bug", incident=incident, method=method)
            code, message, details = status.internal(incident)
            said = {"incident": incident}
            await self._abort(context, code, message, details)
        finally:
            log.info(
                "call",
                method=method,
                code=code.name,
                ms=round((time.perf_counter() - started) * 1000, 2),
                peer=context.peer(),
                **said,
            )

    @staticmethod
    async def _abort(context: Context, code: grpc.StatusCode, message: str, details: bytes) -> None:
        await context.abort(code, message, trailing_metadata=((status.DETAILS_KEY, details),))


_REQUEST_FIELDS = ("pipeline_name", "deployment_id", "request_id")


def _subject(request: Any, response: Any, context: Context) -> dict[str, Any]:
    """What the call was about, for people who look for it in the log."""
    said = {field: value for field in _REQUEST_FIELDS if (value := getattr(request, field, ""))}
    if isinstance(response, pb.DeploymentStatus):
        said |= {
            "pipeline_name": response.pipeline_name,
            "deployment_id": response.id,
            "version": response.version,
            "stage": response.current_stage,
            "status": pb.DeploymentStatus.Status.Name(response.status),
        }
    elif name := getattr(request, "name", ""):
        said["pipeline_name"] = name
    if context.trailing_metadata():
        said["replayed"] = True
    return said
