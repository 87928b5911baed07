"""One deployment at a time, whatever Redis does and however many servers there are."""

import asyncio
import uuid
from collections.abc import Iterator

import grpc
import psycopg
import pytest
import redis as redis_client

from deployment_pipeline.run.embedded import Redis
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import Answer, Client, Refused, TypedClient
from support.servers import server
from support.steps import cancel, outcome, queue, refusal, trigger
from support.stores import RedisKey, Stores, scratch_folder


@pytest.mark.parametrize("request_ids", [False, True])
async def test_s1_of_200_triggers_at_two_servers_one_wins(
    stores: Stores, client: Client, pipeline: str, sql: psycopg.Connection, request_ids: bool
) -> None:
    with server(stores) as one, server(stores) as other:
        async with (
            grpc.aio.insecure_channel(one.address) as channel,
            grpc.aio.insecure_channel(other.address) as other_channel,
        ):
            clients = [TypedClient(channel), TypedClient(other_channel)]
            results = await asyncio.gather(
                *(
                    outcome(trigger(clients[i % 2], pipeline, request_id=str(i) if request_ids else ""))
                    for i in range(200)
                )
            )
        assert (one.stop(), other.stop()) == (0, 0)
    [winner] = [result for result in results if isinstance(result, Answer)]
    losers = [result for result in results if isinstance(result, Refused)]
    assert {loser.reason for loser in losers} == {"PIPELINE_BUSY"}
    assert {loser.facts["deployment_id"] for loser in losers} == {winner.id}
    stored = sql.execute(
        "SELECT seq, status FROM dp_deployments WHERE pipeline_name = %s", [pipeline]
    ).fetchall()
    assert stored == [(1, "IN_PROGRESS")]


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    with scratch_folder() as folder:
        started = Redis(folder / "redis")
        yield started
        started.stop()


async def lives(client: Client, pipeline: str, count: int) -> None:
    """Deployments, one after the other, each guarding the pipeline while it is active."""
    for _ in range(count):
        won = await trigger(client, pipeline)
        lost = await refusal(trigger(client, pipeline))
        assert lost.facts["deployment_id"] == won.id
        await cancel(client, won.id)


async def test_s7_with_redis_stopped_everything_works(
    settings: Settings, client: Client, pipeline: str, own_redis: Redis
) -> None:
    with_own = settings.model_copy(update={"redis_url": own_redis.url})
    async with (
        running(with_own) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        there = TypedClient(channel)
        active = await trigger(there, pipeline)
        own_redis.stop()
        refused = await refusal(trigger(there, pipeline))
        assert refused.facts["deployment_id"] == active.id
        await cancel(there, active.id)
        await lives(there, pipeline, 5)


async def test_s7_with_redis_never_there_everything_works(settings: Settings, pipeline: str) -> None:
    without = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    async with (
        running(without) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        await lives(TypedClient(channel), pipeline, 5)


async def test_s7_with_redis_flushed_at_every_step_everything_works(
    client: Client, pipeline: str, redis: redis_client.Redis
) -> None:
    for _ in range(3):
        redis.flushdb()
        won = await trigger(client, pipeline)
        redis.flushdb()
        lost = await refusal(trigger(client, pipeline))
        assert lost.facts["deployment_id"] == won.id
        redis.flushdb()
        await cancel(client, won.id)


async def test_l1_a_stale_active_key_refuses_nobody(
    client: Client, pipeline: str, redis: redis_client.Redis, redis_key: RedisKey
) -> None:
    redis.set(redis_key("active", pipeline), str(uuid.uuid4()))
    await lives(client, pipeline, 2)


async def test_s7_a_forged_lease_refuses_for_its_short_life_and_never_admits(
    client: Client, pipeline: str, redis: redis_client.Redis, redis_key: RedisKey
) -> None:
    ghost = uuid.uuid4()
    seconds, microseconds = redis.time()
    now_ms = seconds * 1000 + microseconds // 1000
    redis.set(redis_key("active", pipeline), str(ghost))
    redis.set(redis_key("lease", pipeline), f"C:99:{ghost}:{now_ms + 1500}:0:build:1", px=1500)
    await refusal(trigger(client, pipeline))
    await asyncio.sleep(1.6)
    await lives(client, pipeline, 2)


async def test_s3_after_an_acknowledged_end_the_next_trigger_wins(client: Client, pipeline: str) -> None:
    await lives(client, pipeline, 50)


async def test_an_unknown_pipeline_leaves_no_key(client: Client, redis: redis_client.Redis) -> None:
    name = f"unknown-{uuid.uuid4().hex[:8]}"
    await refusal(trigger(client, name))
    for _ in range(50):
        if not redis.keys(f"*{name}*"):
            break
        await asyncio.sleep(0.02)
    assert not redis.keys(f"*{name}*")


@pytest.mark.parametrize("request_id", ["", "r"])
async def test_a_trigger_that_must_be_refused_does_not_wait_for_its_turn(
    settings: Settings, stores: Stores, pipeline: str, sql: psycopg.Connection, request_id: str
) -> None:
    async with (
        running(settings.model_copy(update={"lease_ms": 60_000})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        client = TypedClient(channel)
        active = await trigger(client, pipeline)
        with psycopg.connect(stores.database_url) as stranger:
            stranger.execute("SELECT FROM dp_pipelines WHERE name = %s FOR UPDATE", [pipeline])
            queued = asyncio.create_task(queue(client, pipeline))
            for _ in range(500):
                if sql.execute("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone():
                    break
                await asyncio.sleep(0.01)
            refused = await refusal(trigger(client, pipeline, request_id=request_id))
            assert not queued.done(), "it has the turn, and waits for the row"
        assert refused.facts["deployment_id"] == active.id
        assert (await queued).status_name == "PENDING"
