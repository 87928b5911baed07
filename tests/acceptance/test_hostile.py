"""Hostile clients cannot take a server down. The long versions are in tests/faults."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deployment_pipeline.edge import health
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from dp.v1 import deployment_pipeline_pb2 as pb
from support import attacks
from support.attacks import GET, Peer
from support.clients import Client, Refused, TypedClient
from support.damage import MAX_MIB, connections_gone, damage_by
from support.servers import Server, server
from support.steps import fill_history, outcome, refusal
from support.stores import Stores

ATTACKS = {
    "streams reset": attacks.resets(0.5),
    "headers only": attacks.headers_only(4_000),
    "unfinished requests": attacks.unfinished(100, 0.7),
    "answers that nobody reads": attacks.unread_history("crowded", 100),
    "health watches": attacks.streams(attacks.WATCH, 400),
    "reflection streams": attacks.streams(attacks.REFLECTION, 400),
}


@pytest.fixture(scope="module")
def attacked(stores: Stores) -> Iterator[Server]:
    with server(stores, {"DP_LOG_LEVEL": "error"}) as started:
        yield started
        assert started.stop() == 0


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_costs_little_memory_and_a_caller_beside_it_is_served(
    attacked: Server, pipeline: str, name: str
) -> None:
    if "answers" in name:
        async with grpc.aio.insecure_channel(attacked.address) as channel:
            await fill_history(TypedClient(channel), "crowded", 200)
    found = await damage_by(attacked, pipeline, ATTACKS[name], stands=0.2, recovers=0.3)
    assert found.mib_peak <= MAX_MIB
    assert not found.failed
    await connections_gone(attacked, found)


async def streams_end(peer: Peer, left: int = 0) -> None:
    """Until no more than so many are open."""
    async with asyncio.timeout(5):
        while peer.streams > left:
            await asyncio.to_thread(peer.listen, 0.1)


@pytest.fixture
async def peer(settings: Settings) -> AsyncIterator[Peer]:
    """A hostile client of a server that allows it eight streams."""
    async with running(settings.model_copy(update={"max_streams": 8})) as [served]:
        made = await asyncio.to_thread(Peer, served.address)
        await asyncio.to_thread(made.listen, 1)
        yield made
        made.close()


async def test_a_connection_has_so_many_streams_and_no_more(peer: Peer) -> None:
    for _ in range(20):
        peer.open(GET)
    await streams_end(peer, left=8)


async def test_a_client_that_goes_to_its_limit_loses_no_call(settings: Settings, pipeline: str) -> None:
    async with (
        running(settings.model_copy(update={"max_streams": 8})) as [served],
        grpc.aio.insecure_channel(served.address, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        client = TypedClient(channel)
        await client.call("GetPipeline", name=pipeline)
        await asyncio.gather(*(client.call("GetPipeline", name=pipeline) for _ in range(400)))


async def test_a_request_that_never_comes_in_full_ends_though_its_client_stays(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployment_pipeline.edge.arrivals.REQUEST_SECONDS", 0.3)
    peer.open(GET)
    started = peer.open(GET)
    peer.send_data({started: memoryview(attacks.message(bytes(100))[:-1])})
    assert peer.streams == 2
    await streams_end(peer)
    assert not peer.closed


async def test_requests_that_do_not_come_make_room_for_those_that_do(
    peer: Peer, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployment_pipeline.edge.arrivals.MAX_READING", 2)
    monkeypatch.setattr("deployment_pipeline.edge.arrivals.REQUEST_SECONDS", 60)
    for _ in range(2):
        peer.open(GET)
    await asyncio.to_thread(peer.listen, 0.5)
    assert peer.streams == 2, "while nobody waits they have their time"
    peer.open(GET, attacks.end_of(b""))
    await streams_end(peer, left=1)


async def test_long_answers_that_nobody_reads_have_only_so_much_room(
    settings: Settings, client: Client, new_name: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_history(client, name := new_name(), 10)
    page = (await client.call("GetHistory", pipeline_name=name)).message.ByteSize()
    monkeypatch.setattr("deployment_pipeline.edge.unsent.CONNECTION_BYTES", 2 * page)
    monkeypatch.setattr("deployment_pipeline.edge.unsent.ROOM_BYTES", 3 * page)
    request = pb.GetHistoryRequest(pipeline_name=name).SerializeToString()
    async with (
        running(settings) as [served],
        grpc.aio.insecure_channel(address := served.address) as channel,
    ):
        with attacks.peers(address, 2, window=0) as [one, other]:
            for peer, fit in ((one, 2), (other, 1)):
                for _ in range(3):
                    peer.open(attacks.HISTORY, attacks.end_of(request))
                await streams_end(peer, left=fit)
                await asyncio.to_thread(peer.listen, 0.2)
                assert peer.streams == fit
            there = TypedClient(channel)
            assert (await refusal(there.call("GetHistory", pipeline_name=name))).reason == "OVERLOADED"
            await there.call("GetPipeline", name=name)
        async with asyncio.timeout(5):
            while isinstance(await outcome(there.call("GetHistory", pipeline_name=name)), Refused):
                await there.call("GetPipeline", name=name)  # the server has not seen yet that they left


async def test_a_watch_that_nobody_reads_holds_up_neither_others_nor_the_end(stores: Stores) -> None:
    with server(stores) as watched, attacks.peers(watched.address, 1, window=0) as [peer]:
        for _ in range(50):
            peer.open(attacks.WATCH, attacks.end_of(b""))
        async with grpc.aio.insecure_channel(watched.address) as channel, asyncio.timeout(5):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert watched.stop() == 0


@pytest.mark.parametrize("kind", ["watch", "reflection"])
async def test_a_long_stream_too_many_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("deployment_pipeline.edge.health.MAX_WATCHES", 2)
    monkeypatch.setattr("deployment_pipeline.edge.reflection.MAX_STREAMS", 2)
    async with running(settings) as [served], grpc.aio.insecure_channel(served.address) as channel:

        async def opened() -> Any:
            call: Any
            if kind == "watch":
                call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            else:
                call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
                await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            await call.read()
            return call

        first, _ = [await opened() for _ in range(2)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await opened()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        async with asyncio.timeout(5):
            while True:
                try:
                    await opened()
                    break
                except grpc.aio.AioRpcError:  # it takes the server a moment to see that one has left
                    await asyncio.sleep(0.01)


async def test_watches_of_health_by_one_client_keep_no_other_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients with the published service config send nothing to a server whose health they cannot watch."""
    monkeypatch.setattr(health, "MAX_WATCHES", 100)
    local = [("grpc.use_local_subchannel_pool", 1)]
    asked = health_pb2.HealthCheckRequest()
    async with running(settings) as [served], asyncio.timeout(30):
        channels = [grpc.aio.insecure_channel(served.address, options=local) for _ in range(4)]
        stubs = [health_pb2_grpc.HealthStub(channel) for channel in channels]
        watches = [stub.Watch(asked) for stub in stubs[:2] for _ in range(50)]
        await asyncio.gather(*(watch.read() for watch in watches))
        others = [stub.Watch(asked) for stub in stubs[2:]]
        for other in others:
            assert (await other.read()).status == health_pb2.HealthCheckResponse.SERVING
        # Each took the place of one of the greedy, who gets no place of the others'.
        ended = [watch for watch in watches if watch.done()]
        assert [await watch.code() for watch in ended] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
        with pytest.raises(grpc.aio.AioRpcError):
            await stubs[0].Watch(asked).read()
        assert not any(other.done() for other in others)
        for channel in channels:
            await channel.close()
