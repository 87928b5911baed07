"""Replicas that are stopped under load answer no call CANCELLED: proxies and clients would not repeat it."""

import asyncio
import random
from collections import Counter

import grpc
import pytest

from support.clients import Answer, TypedClient
from support.mesh.losses import Losses
from support.mesh.programs import NotInstalled
from support.mesh.report import REPORT, Stops
from support.mesh.routes import DIRECT, ENVOY, HAPROXY, NGINX, Route
from support.servers import Server
from support.steps import outcome

STOPS = 8
CONNECTIONS = 12
# The next one is stopped when so many more calls have been answered.
CALLS = 200

pytestmark = pytest.mark.mesh


@pytest.mark.parametrize("route", [DIRECT, ENVOY, HAPROXY, NGINX], ids=lambda route: route.name)
async def test_a_stop_answers_no_call_cancelled(route: Route, replicas: list[Server], pipeline: str) -> None:
    codes: Counter[grpc.StatusCode] = Counter()
    busy, over = asyncio.Event(), False

    async def caller(address: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            client = TypedClient(channel)
            while not over:
                result = await outcome(client.call("TriggerDeployment", pipeline_name=pipeline, version="1"))
                code = grpc.StatusCode.OK if isinstance(result, Answer) else result.code
                codes[code] += 1
                if codes.total() % CALLS == 0:
                    busy.set()
                if code is grpc.StatusCode.UNAVAILABLE:
                    await asyncio.sleep(0.01)

    try:
        async with route.open([r.address for r in replicas], Losses(0, random.Random())) as address:  # noqa: S311
            callers = [asyncio.create_task(caller(address)) for _ in range(CONNECTIONS)]
            for stop in range(STOPS):
                busy.clear()
                await busy.wait()
                replica = replicas[stop % 2]
                assert await asyncio.to_thread(replica.stop) == 0
                await asyncio.to_thread(replica.start)
            over = True
            await asyncio.gather(*callers)
    except NotInstalled as error:
        REPORT.not_run[f"{route.name}, stops"] = str(error)
        pytest.fail(f"NOT RUN: {error}")
    cancelled, unavailable = codes[grpc.StatusCode.CANCELLED], codes[grpc.StatusCode.UNAVAILABLE]
    REPORT.stops[route.name] = Stops(STOPS, codes.total(), cancelled, unavailable)
    assert not cancelled, codes
