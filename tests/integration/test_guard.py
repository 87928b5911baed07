"""The guard on a real Redis: what its keys may and may not do."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
import redis as redis_client

from deployment_pipeline.guard.guard import RESERVED_TTL_MS, Guard
from deployment_pipeline.guard.lease import Lease
from deployment_pipeline.model import Deployment
from support.leases import INSTALLATION, LEASE_MS, MAX_BATCH, active_deployment, active_key, lease_key
from support.stores import Stores


@pytest.fixture
async def guard(stores: Stores) -> AsyncIterator[Guard]:
    guard = Guard(stores.redis_url, INSTALLATION, LEASE_MS, MAX_BATCH)
    yield guard
    await guard.close()


@pytest.fixture
def active(new_name: Callable[[], str]) -> Deployment:
    return active_deployment(new_name())


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
