"""What holds for every call, of one answer or of a stream of them."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from deployment_pipeline import call
from deployment_pipeline.edge import rights
from deployment_pipeline.edge.calls import Calls
from deployment_pipeline.edge.grants import Role
from deployment_pipeline.edge.rights import Needs
from deployment_pipeline.refusals import PipelineNotFound
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import Refused, TypedClient
from support.entrances import open_to_all
from support.proxy import postgres_proxy


async def test_a_call_too_many_is_refused_at_once_and_hurts_no_other(
    settings: Settings, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployment_pipeline.edge.calls.MAX_CALLS", 2)
    async with (
        postgres_proxy(settings.database_url) as (proxy, url),
        running(settings.model_copy(update={"database_url": url})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        client = TypedClient(channel)
        await client.call("GetPipeline", name=pipeline)
        proxy.reset(free=0)
        calls = [asyncio.create_task(client.call("GetPipeline", name=pipeline)) for _ in range(3)]
        [refused], held = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        error = refused.exception()
        assert isinstance(error, Refused)
        assert (error.code, error.reason) == (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        proxy.release()
        assert {(await one).name for one in held} == {pipeline}


class Streams:
    """Methods that answer with a stream, wrapped as the service's are."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def Count(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield str(number).encode()

    async def TimeLeft(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        yield str(call.remaining()).encode()

    async def Refuse(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        yield b"0"
        raise PipelineNotFound("shop")

    async def Fail(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        yield b"0"
        raise ZeroDivisionError("SELECT secret")

    async def Forever(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"0"
                await asyncio.sleep(0.01)
        finally:
            self.closed.set()


@pytest.fixture
async def streams(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Streams, Calls, grpc.aio.Channel]]:
    names = ("Count", "TimeLeft", "Refuse", "Fail", "Forever")
    monkeypatch.setattr(rights, "METHODS", dict.fromkeys(names, Needs(Role.NONE)))
    served, calls = Streams(), Calls(open_to_all(), ())
    handlers: dict[str, Any] = {
        name: grpc.unary_stream_rpc_method_handler(getattr(served, name)) for name in names
    }
    calls.add_registered_method_handlers("test.Streams", handlers)
    server = grpc.aio.server()
    calls.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield served, calls, channel
    await server.stop(0)


async def received(channel: grpc.aio.Channel, method: str, request: bytes = b"") -> list[bytes]:
    """Raises Refused, with what came before it as its last argument."""
    stream: Any = channel.unary_stream(f"/test.Streams/{method}")
    came: list[bytes] = []
    try:
        async for message in stream(request):
            came.append(message)  # noqa: PERF401  # what came before an error counts, too
    except grpc.aio.AioRpcError as error:
        refused = Refused.of(error)
        refused.args = (came,)
        raise refused from None
    return came


async def test_a_stream_is_answered_to_its_end(
    streams: tuple[Streams, Calls, grpc.aio.Channel],
) -> None:
    _, calls, channel = streams
    assert await received(channel, "Count", b"3") == [b"0", b"1", b"2"]
    async with asyncio.timeout(5):
        await calls.drain()


@pytest.mark.parametrize(
    ("method", "code", "reason"),
    [("Refuse", StatusCode.NOT_FOUND, "PIPELINE_NOT_FOUND"), ("Fail", StatusCode.INTERNAL, "INTERNAL")],
)
async def test_a_stream_that_fails_ends_with_its_reason(
    streams: tuple[Streams, Calls, grpc.aio.Channel], method: str, code: StatusCode, reason: str
) -> None:
    with pytest.raises(Refused) as refused:
        await received(streams[2], method)
    assert (refused.value.code, refused.value.reason) == (code, reason)
    assert refused.value.args == ([b"0"],)
    assert "secret" not in refused.value.message


async def test_a_stream_whose_caller_leaves_is_closed(
    streams: tuple[Streams, Calls, grpc.aio.Channel],
) -> None:
    served, calls, channel = streams
    stream: Any = channel.unary_stream("/test.Streams/Forever")
    forever = stream(b"")
    assert await forever.read() == b"0"
    forever.cancel()
    async with asyncio.timeout(5):
        await served.closed.wait()
        await calls.drain()


async def test_once_the_server_stops_no_call_gets_longer_than_that(
    streams: tuple[Streams, Calls, grpc.aio.Channel],
) -> None:
    _, calls, channel = streams
    calls.end_by(time.monotonic() + 5)
    [left] = await received(channel, "TimeLeft")
    assert 0 < float(left) <= 5 < call.LONGEST_CALL_SECONDS


async def test_while_draining_no_stream_begins(
    streams: tuple[Streams, Calls, grpc.aio.Channel],
) -> None:
    _, calls, channel = streams
    calls.refuse_new_calls()
    with pytest.raises(Refused) as refused:
        await received(channel, "Count", b"3")
    assert (refused.value.code, refused.value.reason) == (StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
