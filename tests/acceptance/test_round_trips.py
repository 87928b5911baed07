"""What a call costs: counted between the service and its stores."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import psycopg
import pytest

from deployment_pipeline.guard import redis as guard_redis
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import Client, Refused, TypedClient
from support.proxy import Proxy, postgres_proxy, redis_proxy
from support.steps import advance, complete, refusal, status, trigger
from support.stores import next_transaction_id

# One for each round trip of the extended protocol, and of the simple one.
ROUND_TRIP = (b"S", b"Q")


@dataclass
class Counted:
    client: Client
    postgres: Proxy
    redis: Proxy

    def reset(self) -> None:
        self.postgres.reset()
        self.redis.reset()

    def cost(self) -> tuple[int, int]:
        """Round trips to Postgres and to Redis since the reset."""
        return self.postgres.count(*ROUND_TRIP), self.redis.count(b"*")


@pytest.fixture
async def counted(settings: Settings, pipeline: str) -> AsyncIterator[Counted]:
    """A server behind proxies that has done everything once: statements and scripts are prepared."""
    async with (
        postgres_proxy(settings.database_url) as (postgres, database_url),
        redis_proxy(settings.redis_url) as (redis, redis_url),
        running(
            settings.model_copy(update={"database_url": database_url, "redis_url": redis_url, "pool_size": 1})
        ) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        client = TypedClient(channel)
        id = (await trigger(client, pipeline)).id
        await refusal(trigger(client, pipeline))
        await status(client, id)
        await complete(client, id)
        counted = Counted(client, postgres, redis)
        counted.reset()
        yield counted


async def test_a_trigger_costs_one_round_trip_each(
    counted: Counted, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_redis, "BUDGET_SECONDS", 20)
    counted.redis.reset(free=1)
    await trigger(counted.client, pipeline)
    # What comes after the gate is held back, and yet the answer is there: only the gate is on its path.
    assert counted.cost()[0] == 1
    assert counted.redis.count(b"*") <= 2
    counted.redis.release()


async def test_an_advance_costs_one_round_trip_to_postgres(counted: Counted, pipeline: str) -> None:
    id = (await trigger(counted.client, pipeline)).id
    await asyncio.sleep(0.1)  # the fill is over
    counted.reset()
    await advance(counted.client, id)
    assert counted.cost() == (1, 0)
    await advance(counted.client, id)
    counted.reset()
    await advance(counted.client, id)
    assert counted.cost() == (1, 1), "the last one tells the guard"


async def test_a_read_costs_one_round_trip_to_postgres(counted: Counted, pipeline: str) -> None:
    id = (await trigger(counted.client, pipeline)).id
    await asyncio.sleep(0.1)  # the fill is over
    counted.reset()
    await status(counted.client, id)
    assert counted.cost() == (1, 0)


async def test_a_trigger_that_is_known_to_be_hopeless_does_not_reach_postgres(
    counted: Counted, pipeline: str
) -> None:
    await trigger(counted.client, pipeline)
    await asyncio.sleep(0.1)  # the fill is over
    counted.reset()
    for _ in range(10):
        assert (await refusal(trigger(counted.client, pipeline, "2"))).reason == "PIPELINE_BUSY"
    assert counted.cost() == (0, 10)


async def test_a_herd_costs_a_handful(counted: Counted, pipeline: str) -> None:
    calls = [trigger(counted.client, pipeline) for _ in range(500)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, Refused)]
    assert len(refused) == 499
    assert {result.reason for result in refused} == {"PIPELINE_BUSY"}
    assert counted.cost()[0] <= 5


async def test_a_trigger_that_waited_its_turn_asks_redis_before_postgres(
    counted: Counted, pipeline: str, sql: psycopg.Connection
) -> None:
    with sql.transaction():
        sql.execute("SELECT FROM dp_pipelines WHERE name = %s FOR UPDATE", [pipeline])
        first = asyncio.create_task(trigger(counted.client, pipeline))
        await asyncio.sleep(0.2)
        others = [asyncio.create_task(trigger(counted.client, pipeline)) for _ in range(5)]
        await asyncio.sleep(0.2)
    await first
    for other in others:
        assert (await refusal(other)).reason == "PIPELINE_BUSY"
    assert counted.cost()[0] <= 2, "the first one's: it met the lock, and waited for it"


@pytest.mark.parametrize("request_ids", [False, True])
async def test_a_refused_trigger_takes_no_transaction_id(
    client: Client, pipeline: str, sql: psycopg.Connection, request_ids: bool
) -> None:
    await trigger(client, pipeline)
    before = next_transaction_id(sql)
    for number in range(50):
        request_id = f"r{number}" if request_ids else ""
        await refusal(trigger(client, pipeline, "2", request_id=request_id))
    # Postgres itself may take one or two meanwhile (autovacuum does).
    assert next_transaction_id(sql) - before < 10
