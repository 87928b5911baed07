"""The guard on a real Redis: what its keys may and may not do."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import redis as redis_client
from structlog.testing import capture_logs

from deployment_pipeline.guard import redis as guard_redis
from deployment_pipeline.guard.guard import RESERVED_TTL_MS, Guard
from deployment_pipeline.guard.lease import Lease
from deployment_pipeline.model import Deployment
from deployment_pipeline.states import Status
from support.proxy import redis_proxy
from support.stores import Stores

LEASE_MS = 2000
MAX_BATCH = 64
INSTALLATION = "0a1b2c3d"


@pytest.fixture
async def guard(stores: Stores) -> AsyncIterator[Guard]:
    guard = Guard(stores.redis_url, INSTALLATION, LEASE_MS, MAX_BATCH)
    yield guard
    await guard.close()


@pytest.fixture
def active(new_name: Callable[[], str]) -> Deployment:
    now = datetime.now(UTC)
    return Deployment(
        id=uuid.uuid4(),
        pipeline_name=new_name(),
        seq=7,
        version="v:1 ü",
        stages=("a", "b"),
        stage_index=0,
        stage_entered_at=(now,),
        status=Status.IN_PROGRESS,
        created_at=now,
        started_at=now,
        completed_at=None,
        triggered_by="",
        reason="",
        cause=None,
        cause_message="",
        labels={},
        rollback_of=None,
        redeployed_by=None,
        superseded_by=None,
        waiting=None,
    )


def active_key(deployment: Deployment) -> str:
    return f"dp:active:{{{deployment.pipeline_name}}}:{INSTALLATION}"


def lease_key(deployment: Deployment) -> str:
    return f"dp:lease:{{{deployment.pipeline_name}}}:{INSTALLATION}"


async def refused(guard: Guard, deployment: Deployment) -> bool:
    passage = await guard.gate(deployment.pipeline_name, uuid.uuid4())
    assert passage.t0_ms is not None, "redis did not answer"
    return passage.refused_by is not None


async def confirm(guard: Guard, deployment: Deployment) -> None:
    passage = await guard.gate(deployment.pipeline_name, deployment.id)
    await guard.fill(passage, deployment, deployment.id)


async def test_only_a_confirmed_deployment_refuses(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    assert not await refused(guard, active)
    assert not await refused(guard, active)  # the first one's reservation alone refuses nobody
    assert 0 < redis.pttl(active_key(active)) <= RESERVED_TTL_MS  # if its trigger is cut off, it goes
    await confirm(guard, active)
    assert redis.pttl(active_key(active)) > RESERVED_TTL_MS
    passage = await guard.gate(active.pipeline_name, uuid.uuid4())
    lease = passage.refused_by
    assert lease
    assert (lease.seq, lease.id, lease.since) == (7, active.id, active.started_at)
    assert (lease.stage, lease.version) == ("a", "v:1 ü")
    assert Lease.load(lease.dump().encode()) == lease


async def test_s2_a_lease_lives_for_t_c_from_the_gate(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    passage = await guard.gate(active.pipeline_name, active.id)
    await guard.fill(passage, active, active.id)
    assert passage.t0_ms is not None
    seconds, microseconds = redis.time()
    left = passage.t0_ms + LEASE_MS - (seconds * 1000 + microseconds // 1000)
    assert 0 < redis.pttl(lease_key(active)) <= left + 1


async def test_s2_a_fill_whose_time_has_passed_does_nothing(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    passage = await guard.gate(active.pipeline_name, active.id)
    assert passage.t0_ms is not None
    late = replace(passage, t0_ms=passage.t0_ms - LEASE_MS)
    await guard.fill(late, active, active.id)
    assert redis.get(lease_key(active)) is None
    assert redis.get(active_key(active)) is None, "its reservation is taken back"


async def test_s3_after_the_end_nobody_is_refused_because_of_it(guard: Guard, active: Deployment) -> None:
    await confirm(guard, active)
    await guard.end(active, None)
    assert not await refused(guard, active)


async def test_s3_a_late_fill_does_not_bring_an_ended_deployment_back(
    guard: Guard, active: Deployment
) -> None:
    passage = await guard.gate(active.pipeline_name, active.id)
    await guard.end(active, None)
    await guard.fill(passage, active, active.id)
    assert not await refused(guard, active)


async def test_a_late_end_costs_the_next_deployment_a_confirmation_and_no_more(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    following = replace(active, id=uuid.uuid4(), seq=8)
    await confirm(guard, following)
    await guard.end(active, None)
    assert redis.get(active_key(active)) == str(following.id).encode()
    assert not await refused(guard, following)
    await confirm(guard, following)
    assert await refused(guard, following)


async def test_s3_an_end_leaves_a_tombstone_also_behind_a_newer_lease(
    guard: Guard, active: Deployment
) -> None:
    # A redeployment has a newer seq than what waits, and ends before it.
    redeployment = replace(active, id=uuid.uuid4(), seq=9)
    await confirm(guard, redeployment)
    passage = await guard.gate(active.pipeline_name, active.id)
    await guard.end(active, None)
    await guard.fill(passage, active, active.id)
    assert not await refused(guard, active)


async def test_s3_a_late_end_keeps_what_a_newer_lease_says_of_those_between(
    guard: Guard, active: Deployment
) -> None:
    second, third = (replace(active, id=uuid.uuid4(), seq=seq) for seq in (8, 9))
    passage = await guard.gate(active.pipeline_name, uuid.uuid4())
    await guard.end(second, third.id)
    await confirm(guard, third)
    await guard.end(active, None)  # its commit was the first, and its tombstone comes last
    await guard.fill(passage, second, uuid.uuid4())
    assert not await refused(guard, active)


async def test_the_end_hands_the_key_over_to_what_took_the_slot(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    await confirm(guard, active)
    promoted = uuid.uuid4()
    await guard.end(active, promoted)
    assert redis.get(active_key(active)) == str(promoted).encode()
    redis.set(active_key(active), "somebody else")
    await guard.end(active, promoted)
    assert redis.get(active_key(active)) == b"somebody else"


async def test_an_older_fill_does_not_replace_a_newer_one(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    following = replace(active, id=uuid.uuid4(), seq=8)
    await confirm(guard, following)
    await confirm(guard, active)
    lease = redis.get(lease_key(active))
    assert isinstance(lease, bytes)
    assert lease.startswith(f"C:8:{following.id}:".encode())


async def test_a_released_reservation_leaves_no_key(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    await guard.gate(active.pipeline_name, active.id)
    assert redis.get(active_key(active)) == str(active.id).encode()
    await guard.release(active.pipeline_name, uuid.uuid4())
    assert redis.exists(active_key(active)), "somebody else's release"
    await guard.release(active.pipeline_name, active.id)
    assert not redis.exists(active_key(active), lease_key(active))


GARBAGE = [b"", b"C:", b"C:7:x", b"C:x:y:z", b"T:", b"T:99x", b"\xff" * 100, b"C:7:" + b"9" * 1_000_000]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: repr(garbage[:8]))
async def test_s7_garbage_in_the_lease_refuses_nobody_and_is_overwritten(
    guard: Guard, active: Deployment, redis: redis_client.Redis, garbage: bytes
) -> None:
    redis.set(lease_key(active), garbage, px=LEASE_MS)
    redis.set(active_key(active), str(active.id))
    assert not await refused(guard, active)
    await confirm(guard, active)
    assert await refused(guard, active)


async def test_s7_keys_of_another_type_are_thrown_away(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    redis.rpush(lease_key(active), "x")
    redis.hset(active_key(active), "x", "y")
    assert not await refused(guard, active)
    await confirm(guard, active)
    assert await refused(guard, active)


async def test_s7_a_lease_that_would_outlive_t_c_refuses_nobody(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    passage = await guard.gate(active.pipeline_name, active.id)
    assert passage.t0_ms is not None
    far = replace(passage, t0_ms=passage.t0_ms + LEASE_MS * 10)
    await guard.fill(far, active, active.id)
    assert redis.get(active_key(active)) == str(active.id).encode()
    assert not await refused(guard, active)


async def test_s2_a_key_that_does_not_expire_refuses_no_longer_than_its_lease_says(
    stores: Stores, active: Deployment, redis: redis_client.Redis
) -> None:
    guard = Guard(stores.redis_url, INSTALLATION, 1000, MAX_BATCH)
    await confirm(guard, active)
    redis.persist(lease_key(active))
    assert await refused(guard, active)
    await asyncio.sleep(1.1)
    assert not await refused(guard, active)
    await guard.close()


async def test_s3_a_confirmation_keeps_what_is_left_of_a_tombstones_life(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    following = replace(active, id=uuid.uuid4(), seq=8)
    passage = await guard.gate(active.pipeline_name, following.id)
    assert passage.t0_ms is not None
    await guard.end(active, following.id)
    old = replace(passage, t0_ms=passage.t0_ms - LEASE_MS * 3 // 4)
    await guard.fill(old, following, following.id)
    assert await refused(guard, following)
    left = redis.pttl(lease_key(active))
    assert isinstance(left, int)
    assert left > LEASE_MS // 2


async def test_s7_a_lease_that_names_another_than_the_active_one_refuses_nobody(
    guard: Guard, active: Deployment, redis: redis_client.Redis
) -> None:
    await confirm(guard, active)
    redis.set(active_key(active), str(uuid.uuid4()))
    assert not await refused(guard, active)


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
