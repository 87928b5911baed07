"""Attacks in full: what is promised of memory, of a caller beside them, and of what comes after."""

import asyncio
from collections.abc import Awaitable

import grpc
import pytest

from support import attacks
from support.attacks import Attack
from support.clients import Refused, TypedClient
from support.damage import MAX_MIB, MAX_P99_MS, connections_gone, damage_by
from support.proxy import postgres_proxy
from support.servers import Server, server
from support.steps import fill_history, refusal
from support.stops import stop_while_busy
from support.stores import Stores
from support.table import NOTES

STANDS_SECONDS = 3.0
RECOVERS_SECONDS = 5.0
MORE_MIB = 5
STOPS = 8
LATE_IN_THE_DRAIN_SECONDS = 2.8

ATTACKS: dict[str, Attack] = {
    "streams reset for 15 s": attacks.resets(15),
    "100,000 streams with headers only": attacks.headers_only(100_000),
    "300 requests of 1 MiB without their last byte, for 10 s": attacks.unfinished(300, 10),
    "300 long answers that nobody reads": attacks.unread_history("crowded", 300),
    "5,000 health watches": attacks.streams(attacks.WATCH, 5_000),
    "5,000 reflection streams": attacks.streams(attacks.REFLECTION, 5_000),
}


@pytest.mark.proof
@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_is_bounded_and_over_soon(stores: Stores, pipeline: str, name: str) -> None:
    with server(stores, {"DP_LOG_LEVEL": "error"}) as attacked:
        if "answers" in name:
            async with grpc.aio.insecure_channel(attacked.address) as channel:
                await fill_history(TypedClient(channel), "crowded", 800)
        found = await damage_by(
            attacked, pipeline, ATTACKS[name], stands=STANDS_SECONDS, recovers=RECOVERS_SECONDS
        )
        NOTES.append(
            f"{name}: {found.mib_before:.0f} MiB before, {found.mib_peak:.0f} at most,"
            f" {found.mib_after:.0f} after; beside it p99 {found.p99_ms:.0f} ms, after it"
            f" {found.p99_ms_after:.0f} ms"
        )
        assert not found.failed
        assert found.mib_peak <= MAX_MIB
        assert found.mib_after <= found.mib_peak + MORE_MIB, "it has stopped to grow"
        assert found.p99_ms <= MAX_P99_MS
        assert found.p99_ms_after <= MAX_P99_MS
        await connections_gone(attacked, found)
        assert attacked.stop() == 0


@pytest.mark.proof
@pytest.mark.parametrize("workers", [False, True], ids=["one process", "workers"])
@pytest.mark.parametrize("open_loop", [False, True], ids=["closed loop", "open loop"])
async def test_eight_stops_cancel_no_call(
    stores: Stores, pipeline: str, workers: bool, open_loop: bool
) -> None:
    settings = {
        "DP_DATABASE_URL": stores.database_url,
        "DP_REDIS_URL": stores.redis_url,
        "DP_LOG_LEVEL": "error",
        "DP_DRAIN_MS": "200",
    }
    heard: dict[str, int] = {}
    for _ in range(STOPS):
        counts = await stop_while_busy(settings, pipeline, workers=workers, open_loop=open_loop)
        for what, count in counts.items():
            heard[what] = heard.get(what, 0) + count
    NOTES.append(
        f"{STOPS} stops, {'two workers' if workers else 'one process'},"
        f" {'open' if open_loop else 'closed'} loop: {heard}"
    )
    assert set(heard) <= {"OK", "SHUTTING_DOWN", "UNAVAILABLE"}


@pytest.mark.proof
async def test_a_silent_postgres_and_the_longest_drain_leave_a_stop_within_15_seconds(
    stores: Stores, pipeline: str
) -> None:
    async with postgres_proxy(stores.database_url) as (proxy, url):
        settings = {"DP_DATABASE_URL": url, "DP_REDIS_URL": stores.redis_url, "DP_DRAIN_MS": "3000"}
        stopped = await asyncio.to_thread(Server, settings)
        async with grpc.aio.insecure_channel(stopped.address) as channel:
            client = TypedClient(channel)
            await client.call("GetPipeline", name=pipeline)
            proxy.reset(free=0)

            def update() -> Awaitable[Refused]:
                return refusal(client.call("UpdatePipeline", name=pipeline, description="d"))

            early = asyncio.ensure_future(update())
            stopping = asyncio.create_task(asyncio.to_thread(stopped.stop))  # raises after 15 s
            await asyncio.sleep(LATE_IN_THE_DRAIN_SECONDS)
            assert {(await update()).reason, (await early).reason} == {"OUTCOME_UNKNOWN"}
            assert await stopping == 0
