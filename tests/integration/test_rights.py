"""Serving needs no right to change the schema, and says what it lacks."""

from collections.abc import Iterator

import grpc
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from deployment_pipeline.postgres import CannotUse, Postgres
from deployment_pipeline.postgres.migrate import check, migrate
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import TypedClient
from support.databases import OWNER, SERVICE, database, two_roles
from support.steps import advance, cancel, queue, rollback, trigger
from support.stores import Stores


@pytest.fixture
def urls(stores: Stores) -> Iterator[tuple[str, str]]:
    with two_roles(stores.database_url) as both:
        yield both


@pytest.fixture
def as_owner(urls: tuple[str, str]) -> str:
    return urls[0]


@pytest.fixture
def as_service(urls: tuple[str, str]) -> str:
    return urls[1]


async def test_every_call_works_with_the_documented_rights(settings: Settings, as_service: str) -> None:
    migrate(as_service)  # `serve` does; there is nothing to do
    async with (
        running(settings.model_copy(update={"database_url": as_service})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        client = TypedClient(channel)
        await client.call("CreatePipeline", name="shop", stages=["build"])
        await client.call("UpdatePipeline", name="shop", description="d")
        await advance(client, (await trigger(client, "shop", "1")).id)  # completes it
        second = await trigger(client, "shop", "2")
        third = await queue(client, "shop", "3")
        await client.call("LockPipeline", name="shop", reason="r", owner="ops")
        await cancel(client, third.id)
        await client.call("UnlockPipeline", name="shop", owner="ops")
        await rollback(client, second.id, redeploy_last_completed=True)
        await client.call("GetPipelineState", name="shop")
        await client.call("GetHistory", pipeline_name="shop")
        await client.call("ListEvents", pipeline_name="shop")
        await client.call("ListPipelines")


@pytest.mark.parametrize("what", ["functions", "a migration"])
def test_a_schema_that_is_not_current_is_refused_to_who_may_not_change_it(
    as_owner: str, as_service: str, what: str
) -> None:
    check(as_service)
    with psycopg.connect(as_owner) as own:
        if what == "functions":
            own.execute("UPDATE dp_installation SET functions_digest = 'another'")
        else:
            own.execute("DELETE FROM _yoyo_migration WHERE migration_id = '0007_ended'")
    with pytest.raises(CannotUse, match=r"does not have this release's schema.*migrate"):
        check(as_service)
    with pytest.raises(
        CannotUse, match=r"does not have this release's schema.*(must be owner|denied).*operate\.md"
    ):
        migrate(as_service)
    migrate(as_owner)
    check(as_service)


async def test_a_right_that_is_missing_is_named(as_owner: str, as_service: str) -> None:
    with psycopg.connect(as_owner) as own:
        own.execute(f"REVOKE SELECT ON dp_installation FROM {SERVICE}".encode())
    postgres = Postgres(as_service, 1, 64)
    with pytest.raises(CannotUse, match=r"permission denied for table dp_installation; docs/operate\.md"):
        await postgres.open()
    with pytest.raises(CannotUse, match="permission denied for table dp_installation"):
        check(as_service)


def test_an_empty_database_is_refused_without_migrating(stores: Stores, urls: tuple[str, str]) -> None:
    with database(stores.database_url, "dp_empty", f"OWNER {OWNER}") as url:
        with pytest.raises(CannotUse, match="run `deployment-pipeline migrate`"):
            check(url)
        with pytest.raises(CannotUse, match="permission denied for schema public"):
            migrate(make_conninfo(url, user=SERVICE))


async def test_a_limit_of_connections_is_said_in_the_servers_words(
    stores: Stores, as_service: str, monkeypatch: pytest.MonkeyPatch, sql: psycopg.Connection
) -> None:
    monkeypatch.setattr("deployment_pipeline.postgres.connections.CONNECT_ALL_SECONDS", 1.5)
    sql.execute(f"ALTER ROLE {SERVICE} CONNECTION LIMIT 4".encode())
    postgres = Postgres(as_service, 10, 64)
    with pytest.raises(CannotUse) as refused:
        await postgres.open()
    said = str(refused.value)
    assert "gives 4 of the 10 connections that each worker opens (DP_POOL_SIZE)" in said
    assert f'FATAL: too many connections for role "{SERVICE}"' in said
    enough = Postgres(as_service, 4, 64)
    await enough.open()
    await enough.close()
