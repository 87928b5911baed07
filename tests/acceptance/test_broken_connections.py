"""Connections to Postgres that break: a call is repeated once, and changes things once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from psycopg.conninfo import make_conninfo

from deployment_pipeline.edge import health
from deployment_pipeline.postgres.migrate import migrate
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support import audit
from support.clients import Client, Refused, TypedClient
from support.proxy import Proxy, postgres_proxy
from support.steps import advance, cancel, status, trigger


@pytest.fixture
async def behind(settings: Settings) -> AsyncIterator[tuple[Client, Proxy]]:
    """A server with one connection, behind a proxy."""
    async with (
        postgres_proxy(settings.database_url) as (proxy, url),
        running(settings.model_copy(update={"database_url": url, "pool_size": 1})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        yield TypedClient(channel), proxy


async def changes_of_each_kind(client: Client, pipeline: str) -> list[tuple[str, dict[str, Any]]]:
    """Calls that change something, one of each kind, without a request_id."""
    id = (await trigger(client, pipeline, "0")).id
    await advance(client, id)
    return [
        ("AdvanceStage", {"deployment_id": id}),
        ("Rollback", {"deployment_id": id, "redeploy_version": "1"}),
        ("LockPipeline", {"name": pipeline, "reason": "r", "owner": "me"}),
        ("UnlockPipeline", {"name": pipeline, "owner": "me"}),
        ("UpdatePipeline", {"name": pipeline, "description": "d"}),
        ("TriggerDeployment", {"pipeline_name": pipeline, "version": "2", "on_busy": "QUEUE"}),
    ]


@pytest.mark.parametrize("how", ["lose_one_answer", "crash_one_answer"])
async def test_d1_an_answer_that_gets_lost_is_asked_for_again_and_nothing_is_done_twice(
    behind: tuple[Client, Proxy], pipeline: str, sql: psycopg.Connection, how: str
) -> None:
    client, proxy = behind
    # Once with every answer, so that each statement is prepared and what gets lost later is a commit.
    warm = f"{pipeline}-warm"
    await client.call("CreatePipeline", name=warm, stages=["a", "b", "c"])
    for method, fields in await changes_of_each_kind(client, warm):
        await client.call(method, **fields)
    for number, (method, fields) in enumerate(await changes_of_each_kind(client, pipeline)):
        before = sql.execute("SELECT last_event_no FROM dp_pipelines WHERE name = %s", [pipeline]).fetchone()
        setattr(proxy, how, True)
        await client.call(method, **fields)
        assert not getattr(proxy, how), f"{number}: the moment was reached"
        after = sql.execute("SELECT last_event_no FROM dp_pipelines WHERE name = %s", [pipeline]).fetchone()
        assert before
        assert after
        assert after[0] - before[0] == (2 if method == "Rollback" else 1)
    audit.check(sql, pipeline)


async def test_l5_terminated_backends_cost_no_call(
    settings: Settings, client: Client, pipeline: str, sql: psycopg.Connection
) -> None:
    for _ in range(3):
        sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE starts_with(application_name, 'deployment-pipeline/')"
        )
        id = (await trigger(client, pipeline)).id
        assert (await status(client, id)).status_name == "IN_PROGRESS"
        await cancel(client, id)


async def test_l3_l5_an_outage_that_fills_every_queue_ends_with_it(
    settings: Settings, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployment_pipeline.postgres.connections.MAX_WAIT_SECONDS", 0.5)
    monkeypatch.setattr("deployment_pipeline.postgres.connections.MAX_WAITING", 20)
    monkeypatch.setattr("deployment_pipeline.postgres.connections.RECONNECT_SECONDS", 0.5)
    async with (
        postgres_proxy(settings.database_url) as (proxy, url),
        running(settings.model_copy(update={"database_url": url, "pool_size": 2})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        client = TypedClient(channel)
        await client.call("GetPipeline", name=pipeline)
        proxy.away = True
        calls = [client.call("GetPipeline", name=pipeline) for _ in range(100)]
        refused = await asyncio.gather(*calls, return_exceptions=True)
        reasons = {r.reason for r in refused if isinstance(r, Refused)}
        assert reasons <= {"STORE_UNAVAILABLE", "OVERLOADED"}, "nothing happened"
        await asyncio.sleep(1.5)  # every attempt to reconnect has been given up by now
        proxy.away = False
        async with asyncio.timeout(health.PROBE_PAUSE_SECONDS + 5):
            while True:
                try:
                    await client.call("GetPipeline", name=pipeline)
                    break
                except Refused as still_away:
                    assert still_away.reason == "STORE_UNAVAILABLE"  # noqa: PT017
                    await asyncio.sleep(0.05)


async def test_options_in_the_url_are_the_services_too(settings: Settings, sql: psycopg.Connection) -> None:
    sql.execute("CREATE SCHEMA dp_elsewhere")
    url = make_conninfo(settings.database_url, options="-c search_path=dp_elsewhere")
    migrate(url)
    async with (
        running(settings.model_copy(update={"database_url": url})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        await TypedClient(channel).call("CreatePipeline", name="elsewhere", stages=["a"])
    assert sql.execute("SELECT name FROM dp_elsewhere.dp_pipelines").fetchall() == [("elsewhere",)]
    sql.execute("DROP SCHEMA dp_elsewhere CASCADE")


async def test_readiness_follows_postgres_and_liveness_does_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("deployment_pipeline.postgres.connections.MAX_WAIT_SECONDS", 0.2)
    async with (
        postgres_proxy(settings.database_url) as (proxy, url),
        running(settings.model_copy(update={"database_url": url, "pool_size": 1})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        async def statuses(name: str, until: int) -> None:
            async with asyncio.timeout(15):
                async for answer in stub.Watch(health_pb2.HealthCheckRequest(service=name)):
                    if answer.status == until:
                        return

        await statuses("readiness", health.SERVING)
        proxy.away = True
        await statuses("readiness", health.NOT_SERVING)
        await statuses("liveness", health.SERVING)
        proxy.away = False
        await statuses("readiness", health.SERVING)
