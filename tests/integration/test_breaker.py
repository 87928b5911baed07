"""The guard while Redis is away, slow or back: it gives up soon, and says so once."""

import asyncio
from collections.abc import Callable

import pytest
import redis as redis_client
from structlog.testing import capture_logs

from deployment_pipeline.guard import redis as guard_redis
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.model import Deployment
from support.leases import INSTALLATION, LEASE_MS, MAX_BATCH, active_deployment, lease_key
from support.proxy import redis_proxy
from support.stores import Stores


@pytest.fixture
def active(new_name: Callable[[], str]) -> Deployment:
    return active_deployment(new_name())


async def answers(guard: Guard, active: Deployment) -> bool:
    return (await guard.gate(active.pipeline_name, active.id)).t0_ms is not None


async def test_without_redis_the_breaker_opens_and_a_probe_closes_it(
    stores: Stores, active: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_redis, "BREAKER_SECONDS", 2.0)  # a machine may stall for less

    async with redis_proxy(stores.redis_url) as (proxy, url):
        guard = Guard(url, INSTALLATION, LEASE_MS, MAX_BATCH)
        assert await answers(guard, active)
        proxy.away = True
        for _ in range(guard_redis.FAILURES_TO_OPEN):
            assert not await answers(guard, active)
        proxy.away = False
        proxy.reset()
        assert not await answers(guard, active)
        assert not proxy.asked, "the open breaker does not even ask"
        await guard.end(active, None)
        assert proxy.asked, "but an end is told: others may rely on this Redis"
        assert await answers(guard, active), "and closes the breaker if it is heard"
        proxy.away = True
        for _ in range(guard_redis.FAILURES_TO_OPEN):
            assert not await answers(guard, active)
        proxy.away = False
        assert not await answers(guard, active)
        await asyncio.sleep(guard_redis.BREAKER_SECONDS)
        assert await answers(guard, active)
        assert await answers(guard, active)
        await guard.close()


async def test_the_log_says_once_that_redis_is_away_and_once_that_it_is_back(
    stores: Stores, active: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_redis, "BREAKER_SECONDS", 0.0)  # every call probes
    async with redis_proxy(stores.redis_url) as (proxy, url):
        guard = Guard(url, INSTALLATION, LEASE_MS, MAX_BATCH)
        with capture_logs() as lines:
            proxy.away = True
            await guard.open()
            for _ in range(guard_redis.FAILURES_TO_OPEN + 2):
                assert not await answers(guard, active)
            proxy.away = False
            for _ in range(3):
                assert await answers(guard, active)
        await guard.close()
    assert [line["event"] for line in lines] == [
        "redis does not answer: triggers go to postgres",
        "redis is left out: triggers go to postgres",
        "redis is back",
    ]


async def test_a_round_trip_that_hangs_is_one_failure_for_all_its_steps(
    stores: Stores, active: Deployment
) -> None:
    async with redis_proxy(stores.redis_url) as (proxy, url):
        guard = Guard(url, INSTALLATION, LEASE_MS, MAX_BATCH)
        assert await answers(guard, active)
        proxy.black_hole = True
        assert not any(await asyncio.gather(*(answers(guard, active) for _ in range(20))))
        proxy.black_hole = False
        assert await answers(guard, active), "the breaker is closed"
        await guard.close()


async def test_s3_a_tombstone_is_left_even_if_nobody_waits_for_it_any_more(
    stores: Stores, active: Deployment, redis: redis_client.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_redis, "BUDGET_SECONDS", 0.3)
    async with redis_proxy(stores.redis_url) as (proxy, url):
        guard = Guard(url, INSTALLATION, LEASE_MS, MAX_BATCH)
        await guard.gate(active.pipeline_name, active.id)
        proxy.away = True
        for _ in range(guard_redis.FAILURES_TO_OPEN):
            await guard.gate(active.pipeline_name, active.id)
        proxy.away = False
        proxy.black_hole = True
        stuck = guard._redis._steps.ask(
            guard_redis._Step(guard_redis.Script("release"), ("a{b}", "c{b}", ""))
        )
        await asyncio.sleep(0.05)
        await guard.end(active, None)  # gives up before the step ahead of it does
        assert redis.get(lease_key(active)) is None
        proxy.black_hole = False
        await stuck
        for _ in range(100):
            await asyncio.sleep(0.02)
            if found := redis.get(lease_key(active)):
                break
        assert found == f"T:{active.seq}".encode()
        await guard.close()
