"""Replicas are replaced one by one under load, and a client with the published config loses no call.

By others of this release, and by those of the release before and back.
"""

import asyncio
import socket
import time
from pathlib import Path

import grpc
import pytest

from support.clients import Refused, TypedClient, published_config
from support.releases import unpack
from support.servers import server
from support.stores import Stores

CALLERS = 8
STOPS = 4
# Before the next one stops, clients must have found this one again: they wait a second or more between tries.
READY_SECONDS = 3.0


def two_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], other.getsockname()[1]]


@pytest.mark.proof
@pytest.mark.parametrize("upgrade", [False, True])
async def test_a_client_with_the_published_config_notices_nothing(
    stores: Stores, pipeline: str, upgrade: bool, tmp_path: Path
) -> None:
    before = unpack(tmp_path) if upgrade else {}
    ports = two_ports()
    options = [("grpc.service_config", published_config())]
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    settings = [
        {"DP_LISTEN": f"127.0.0.1:{port}", "DP_DRAIN_MS": "1000", "DP_LOG_LEVEL": "error"} for port in ports
    ]
    own = {"DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": stores.redis_url}
    failed: list[Refused] = []
    calls, over = 0, False
    with server(stores, settings[0]) as one, server(stores, settings[1]) as other:
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            client = TypedClient(channel)

            async def caller(number: int) -> None:
                nonlocal calls
                while not over:
                    calls += 1
                    try:
                        await client.call(
                            "TriggerDeployment",
                            pipeline_name=pipeline,
                            version="1",
                            request_id=f"{number} {calls}",
                        )
                    except Refused as refused:
                        if "ErrorInfo" not in refused.details or refused.reason != "PIPELINE_BUSY":
                            failed.append(refused)

            callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
            for stop in range(STOPS):
                replica = (one, other)[stop % 2]
                # The first two stops end in the release before, and the last two in this one again.
                replica.settings = {**settings[stop % 2], **own, **(before if stop < STOPS / 2 else {})}
                started = time.monotonic()
                assert await asyncio.to_thread(replica.stop) == 0
                assert time.monotonic() - started < 15
                await asyncio.to_thread(replica.start)
                await asyncio.sleep(READY_SECONDS)
            over = True
            await asyncio.gather(*callers)
        assert (one.stop(), other.stop()) == (0, 0)
    assert calls > STOPS * CALLERS
    if failed:
        pytest.fail(f"{len(failed)} of {calls} calls failed, the first with {failed[0]}")
