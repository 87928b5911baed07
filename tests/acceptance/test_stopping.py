"""A server that is told to stop ends soon, and tells its callers why."""

import asyncio
import time

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deployment_pipeline import call
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import Refused, TypedClient
from support.servers import server
from support.steps import refusal, trigger
from support.stops import stop_while_busy
from support.stores import Stores


@pytest.mark.parametrize(
    ("workers", "open_loop"), [(False, False), (False, True), (True, False)], ids=["", "open loop", "workers"]
)
async def test_no_call_is_cancelled_by_a_stop(
    stores: Stores, pipeline: str, workers: bool, open_loop: bool
) -> None:
    settings = {
        "DP_DATABASE_URL": stores.database_url,
        "DP_REDIS_URL": stores.redis_url,
        "DP_LOG_LEVEL": "error",
    }
    counts = await stop_while_busy(settings, pipeline, workers=workers, open_loop=open_loop)
    assert set(counts) <= {"OK", "SHUTTING_DOWN", "UNAVAILABLE"}, "the last one is what the network says"
    assert counts["SHUTTING_DOWN"], "the moment was reached"


async def test_open_watches_end_with_the_drain_and_hold_nothing_up(stores: Stores) -> None:
    with server(stores, {"DP_DRAIN_MS": "200"}) as running_server:
        async with grpc.aio.insecure_channel(running_server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "readiness")]
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            began = time.monotonic()
            assert await asyncio.to_thread(running_server.stop) == 0
            assert time.monotonic() - began < 0.2 + 2
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                with pytest.raises(grpc.aio.AioRpcError) as ended:
                    await watch.read()
                refused = Refused.of(ended.value)
                assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


async def test_who_waits_for_others_hears_why_it_was_in_vain(
    settings: Settings, pipeline: str, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "SHAVED_SECONDS", 0.5)
    async with (
        running(settings) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        client = TypedClient(channel)
        await client.call("GetPipeline", name=pipeline)
        with psycopg.connect(stores.database_url) as stranger:
            stranger.execute("SELECT FROM dp_pipelines WHERE name = %s FOR UPDATE", [pipeline])
            leads = asyncio.create_task(refusal(trigger(client, pipeline, timeout=3)))
            await asyncio.sleep(0.1)
            waits = [
                trigger(client, pipeline, request_id="r", timeout=1),  # for its turn
                client.call("UpdatePipeline", name=pipeline, description="d", timeout=1),  # for the row
            ]
            refused = await asyncio.gather(*map(refusal, waits))
            assert {(r.code, r.reason) for r in [*refused, await leads]} == {
                (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            }
