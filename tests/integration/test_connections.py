"""What Postgres may say to a statement beside its rows, and what that means."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from deployment_pipeline.commands import CreatePipeline, TriggerDeployment
from deployment_pipeline.model import Outcome
from deployment_pipeline.postgres import Postgres
from deployment_pipeline.postgres.migrate import migrate
from deployment_pipeline.refusals import StoreUnavailable
from support.stores import Stores


@pytest.fixture
async def postgres(stores: Stores) -> AsyncIterator[Postgres]:
    opened = Postgres(stores.database_url, 2, 1)
    await opened.open()
    yield opened
    await opened.close()


async def test_s1_a_slot_taken_past_the_row_lock_is_busy_and_no_error(
    postgres: Postgres, stores: Stores, sql: psycopg.Connection, new_name: Callable[[], str]
) -> None:
    """The index refuses what the lock could not see; asked again, the function says who is in the way."""
    name, rival = new_name(), uuid.uuid4()
    await postgres.changes.make(CreatePipeline(name=name, stages=["a"]))
    with psycopg.connect(stores.database_url) as stranger:
        stranger.execute(
            "INSERT INTO dp_deployments (id, pipeline_name, seq, version, stages, stage_index,"
            " stage_entered_at, status, created_at, started_at, reason, labels)"
            " VALUES (%s, %s, 99, '1', '{a}', 0, '{now}', 'IN_PROGRESS', now(), now(), '', '{}')",
            (rival, name),
        )
        asked = TriggerDeployment(pipeline_name=name, version="1")
        trigger = asyncio.create_task(postgres.changes.make(asked, id=uuid.uuid4()))
        for _ in range(500):
            if sql.execute("SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'").rowcount:
                break
            await asyncio.sleep(0.01)
        stranger.commit()
    decision = await trigger
    assert decision.outcome is Outcome.PIPELINE_BUSY
    assert decision.deployment
    assert decision.deployment.id == rival


async def test_a_read_only_postgres_refuses_changes_and_serves_reads(
    stores: Stores, postgres: Postgres, new_name: Callable[[], str]
) -> None:
    name = new_name()
    await postgres.changes.make(CreatePipeline(name=name, stages=["a"]))
    url = make_conninfo(stores.database_url, options="-c default_transaction_read_only=on")
    standby = Postgres(url, 1, 64)
    await standby.open()
    try:
        with pytest.raises(StoreUnavailable):
            await standby.changes.make(TriggerDeployment(pipeline_name=name, version="1"), id=uuid.uuid4())
        assert await standby.reads.pipeline(name)
    finally:
        await standby.close()


async def test_a_function_that_is_missing_means_that_nothing_happened(
    stores: Stores, sql: psycopg.Connection
) -> None:
    """An upgrade may replace the functions that a call is in."""
    name = f"dp_vanish_{uuid.uuid4().hex[:8]}"
    sql.execute(f"CREATE SCHEMA {name}".encode())
    try:
        url = make_conninfo(stores.database_url, options=f"-c search_path={name}")
        migrate(url)
        there = Postgres(url, 1, 64)
        await there.open()
        try:
            await there.changes.make(CreatePipeline(name="shop", stages=["a"]))
            sql.execute(f"DROP FUNCTION {name}.dp_open_deployment".encode())
            with pytest.raises(StoreUnavailable):
                await there.changes.make(
                    TriggerDeployment(pipeline_name="shop", version="1"), id=uuid.uuid4()
                )
        finally:
            await there.close()
    finally:
        sql.execute(f"DROP SCHEMA {name} CASCADE".encode())
