"""What the readiness probe finds, on connections that are dead, read-only, or have no room left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from deployment_pipeline.commands import CreatePipeline
from deployment_pipeline.postgres import Postgres
from deployment_pipeline.refusals import StoreUnavailable
from support.databases import SERVICE, two_roles
from support.stores import Stores

POOL_SIZE = 3


@pytest.fixture
def url(stores: Stores) -> Iterator[str]:
    """Of a role that only this has."""
    with two_roles(stores.database_url) as (_, as_service):
        yield as_service


async def no_session_left(sql: psycopg.Connection) -> None:
    for _ in range(500):
        if not sql.execute("SELECT FROM pg_stat_activity WHERE usename = %s", [SERVICE]).rowcount:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("they are still there")


async def is_ready(postgres: Postgres) -> None:
    for _ in range(500):
        with contextlib.suppress(StoreUnavailable):
            return await postgres.probe()
        await asyncio.sleep(0.02)
    raise AssertionError("it stays not ready")


@pytest.fixture
def cut_while_idle(url: str, sql: psycopg.Connection) -> None:
    sql.execute(f"ALTER ROLE {SERVICE} SET idle_session_timeout = '300ms'".encode())


@pytest.fixture
async def postgres(url: str) -> AsyncIterator[Postgres]:
    opened = Postgres(url, POOL_SIZE, 64)
    await opened.open()
    yield opened
    await opened.close()


@pytest.mark.usefixtures("cut_while_idle")
async def test_connections_cut_while_idle_are_no_reason_to_be_not_ready(
    postgres: Postgres, sql: psycopg.Connection
) -> None:
    await postgres.changes.make(CreatePipeline(name="shop", stages=["a"]))
    asks: list[Callable[[], object]] = [
        postgres.probe,
        postgres.probe,
        lambda: postgres.reads.pipeline("shop"),
        lambda: postgres.changes.make(CreatePipeline(name="shop", stages=["a"])),
    ]
    for ask in asks:
        await no_session_left(sql)
        await ask()  # type: ignore[misc]


async def test_a_read_only_postgres_is_not_ready_and_serves_reads(
    postgres: Postgres, sql: psycopg.Connection
) -> None:
    await postgres.changes.make(CreatePipeline(name="shop", stages=["a"]))
    await postgres.probe()
    read_only = f"ALTER ROLE {SERVICE} SET default_transaction_read_only"
    sql.execute(f"{read_only} = on".encode())
    sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [SERVICE])
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await postgres.probe()
        pipeline = await postgres.reads.pipeline("shop")
        assert pipeline
    sql.execute(f"{read_only} = off".encode())
    await is_ready(postgres)  # new sessions are asked
    await postgres.changes.make(CreatePipeline(name="shop 2", stages=["a"]))


async def test_a_full_disk_is_not_ready_until_a_change_may_try_again(
    postgres: Postgres, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployment_pipeline.postgres.connections.FULL_SECONDS", 0.5)
    await postgres.changes.make(CreatePipeline(name="shop", stages=["a"]))
    with psycopg.connect(make_conninfo(stores.database_url, dbname="dp_two_roles"), autocommit=True) as sql:
        sql.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'no space left' USING ERRCODE = 'disk_full'; END $$;"
            " CREATE TRIGGER full_disk BEFORE INSERT ON dp_pipelines EXECUTE FUNCTION full_disk()"
        )
        with pytest.raises(StoreUnavailable):
            await postgres.changes.make(CreatePipeline(name="shop 2", stages=["a"]))
        with pytest.raises(StoreUnavailable):
            await postgres.probe()
        assert await postgres.reads.pipeline("shop")
        sql.execute("DROP TRIGGER full_disk ON dp_pipelines")
    await is_ready(postgres)
    await postgres.changes.make(CreatePipeline(name="shop 2", stages=["a"]))
