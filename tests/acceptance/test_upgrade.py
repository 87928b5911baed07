"""Two releases overlap: the one before runs on this one's schema, and each reads what the other wrote."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from deployment_pipeline.postgres import migrate
from dp.v1 import deployment_pipeline_pb2 as pb
from support.clients import Client, TypedClient
from support.databases import as_url, database
from support.releases import unpack
from support.servers import Server, server
from support.steps import advance, cancel, queue, refusal, rollback, status, trigger
from support.stores import Stores, scratch_folder

STAGES = ["build", "test", "deploy"]


@pytest.fixture(scope="module")
def before(stores: Stores) -> Iterator[Server]:
    """A server of the release before."""
    with scratch_folder() as folder, server(stores, {**unpack(folder), "DP_LOG_LEVEL": "error"}) as running:
        yield running


@pytest.fixture(scope="module")
async def old(before: Server) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(before.address) as channel:
        yield TypedClient(channel)


async def test_it_is_another_release(before: Server, client: Client, sql: psycopg.Connection) -> None:
    names = sql.execute("SELECT DISTINCT application_name FROM pg_stat_activity").fetchall()
    assert len([name for (name,) in names if name.startswith("deployment-pipeline/")]) == 2


async def test_every_call_of_the_release_before_works_on_this_schema(
    old: Client, new_name: Callable[[], str]
) -> None:
    name = new_name()
    await old.call("CreatePipeline", name=name, stages=STAGES, labels={"team": "shop"})
    await old.call("UpdatePipeline", name=name, description="d")
    first = await trigger(old, name, "1")
    assert (await refusal(trigger(old, name, "2"))).reason == "PIPELINE_BUSY"
    for stage in STAGES:
        first = await advance(old, first.id, expected_stage=stage)
    assert first.status_name == "COMPLETED"
    second = await trigger(old, name, "2")
    waiting = await queue(old, name, "3")
    assert waiting.queue_position == 1
    newer = await trigger(old, name, "4", on_busy="SUPERSEDE")
    rolled_back = await rollback(old, second.id, redeploy_last_completed=True)
    state = await old.call("GetPipelineState", name=name)
    assert (state.active.id, state.active.version) == (rolled_back.redeployed_by, "1")
    assert [d.id for d in state.queue] == [newer.id]
    await old.call("LockPipeline", name=name, reason="r")
    await cancel(old, state.active.id)
    assert (await old.call("UnlockPipeline", name=name, start_next=True)).started.id == newer.id
    history = await old.call("GetHistory", pipeline_name=name, statuses=["COMPLETED"], reached_stage="test")
    assert [d.version for d in history.deployments] == ["1"]
    assert (await status(old, waiting.id)).cause.code == pb.Cause.SUPERSEDED
    assert len((await old.call("ListEvents", pipeline_name=name)).events) == 16
    assert (await old.call("GetPipeline", name=name)).revision == 2
    await old.call("ListPipelines", page_size=1)


@pytest.mark.parametrize("first_is_old", [True, False])
async def test_i1_i2_a_request_sent_to_one_release_is_recognised_by_the_other(
    old: Client, client: Client, new_name: Callable[[], str], first_is_old: bool
) -> None:
    first, other = (old, client) if first_is_old else (client, old)
    name = new_name()

    async def twice(method: str, *, first: Client = first, other: Client = other, **fields: Any) -> Any:
        made = await first.call(method, **fields, request_id=method)
        again = await other.call(method, **fields, request_id=method)
        assert not made.replayed
        assert again.replayed
        return made

    await twice("CreatePipeline", name=name, stages=STAGES, labels={"b": "1", "a": "2"}, max_pending=7)
    await twice("UpdatePipeline", name=name, description="d", expected_revision=1)
    await twice("LockPipeline", name=name, reason="r", expires_at={"seconds": 4_000_000_000})
    # The release before cannot say which lock it means, and this one must.
    await twice("UnlockPipeline", first=old, other=client, name=name, start_next=True, reason="r")
    made = await twice(
        "TriggerDeployment", pipeline_name=name, version="1", on_busy="QUEUE", labels={"ü": "1"}
    )
    await twice("AdvanceStage", deployment_id=made.id, expected_stage="build", reason="r")
    await twice("Rollback", deployment_id=made.id, redeploy_version="0", reason="r")
    made = await queue(first, name, "2")
    await twice("CancelDeployment", deployment_id=made.id)
    refused = await refusal(cancel(other, made.id, reason="r", request_id="CancelDeployment"))
    assert refused.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("first_is_old", [True, False])
async def test_a_page_token_of_one_release_continues_the_list_in_the_other(
    old: Client, client: Client, pipeline: str, first_is_old: bool
) -> None:
    first, other = (old, client) if first_is_old else (client, old)
    for version in "123":
        made = await trigger(client, pipeline, version)
        await cancel(client, made.id)
    asked: dict[str, Any] = {"pipeline_name": pipeline, "limit": 2, "statuses": ["CANCELLED"]}
    page = await first.call("GetHistory", **asked)
    rest = await other.call("GetHistory", **asked, page_token=page.next_page_token)
    assert [d.version for d in [*page.deployments, *rest.deployments]] == ["3", "2", "1"]
    assert not rest.next_page_token


@pytest.fixture
def future(stores: Stores, sql: psycopg.Connection) -> Iterator[str]:
    """A database in which a later release has stored what this one does not know."""
    name = f"dp_future_{uuid.uuid4().hex[:8]}"
    sql.execute(f"CREATE DATABASE {name}".encode())
    url = make_conninfo(stores.database_url, dbname=name)
    try:
        migrate.migrate(url)
        with psycopg.connect(url, autocommit=True) as later:
            for kind in ("status", "started", "completed", "cause"):
                later.execute(f"ALTER TABLE dp_deployments DROP CONSTRAINT dp_deployments_{kind}".encode())
            later.execute("ALTER TABLE dp_events DROP CONSTRAINT dp_events_law")
        yield url
    finally:
        sql.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.mark.parametrize("is_old", [True, False])
async def test_what_a_later_release_stored_is_read_as_unspecified(
    stores: Stores, before: Server, future: str, is_old: bool
) -> None:
    settings = {"DP_DATABASE_URL": as_url(future)}
    if is_old:
        settings["PYTHONPATH"] = before.settings["PYTHONPATH"]
    with server(stores, settings) as running:
        async with grpc.aio.insecure_channel(running.address) as channel:
            client = TypedClient(channel)
            await client.call("CreatePipeline", name="shop", stages=STAGES)
            made = await trigger(client, "shop")
            with psycopg.connect(future, autocommit=True) as later:
                later.execute(
                    "UPDATE dp_deployments SET status = 'PAUSED', cause = 'TIMED_OUT', cause_message = 'late'"
                )
                later.execute(
                    "UPDATE dp_events SET type = 'PAUSE', to_status = 'PAUSED' WHERE type = 'TRIGGER'"
                )
            unknown = await status(client, made.id)
            assert unknown.status == pb.DeploymentStatus.STATUS_UNSPECIFIED
            assert (unknown.cause.code, unknown.cause.message) == (pb.Cause.CODE_UNSPECIFIED, "late")
            [shown] = (await client.call("GetHistory", pipeline_name="shop")).deployments
            assert shown == unknown.message
            created, triggered = (await client.call("ListEvents", pipeline_name="shop")).events
            assert (created.type, created.HasField("to_status")) == (pb.Event.CREATE, False)
            assert triggered.type == pb.Event.TYPE_UNSPECIFIED
            assert triggered.to_status == pb.DeploymentStatus.STATUS_UNSPECIFIED
            assert (await client.call("GetPipelineState", name="shop")).pending_count == 0


async def test_what_the_release_before_stored_is_brought_up_to_date(stores: Stores) -> None:
    with (
        database(stores.database_url, "dp_upgrade_test") as url,
        psycopg.connect(url, autocommit=True) as sql,
    ):
        with scratch_folder() as folder:
            theirs = {**unpack(folder), "DP_DATABASE_URL": as_url(url), "DP_LOG_LEVEL": "error"}
            with server(stores, theirs) as running:
                async with grpc.aio.insecure_channel(running.address) as channel:
                    old = TypedClient(channel)
                    for name in ("free", "locked"):
                        await old.call("CreatePipeline", name=name, stages=["a"])
                        await advance(old, (await trigger(old, name, "1")).id)
                    for owner in ("somebody", "ops"):
                        await old.call("LockPipeline", name="locked", reason="r", owner=owner)
                        if owner == "somebody":
                            await old.call("UnlockPipeline", name="locked")
                assert running.stop() == 0
        own = {"DP_DATABASE_URL": as_url(url), "DP_LOG_LEVEL": "error"}
        with server(stores, own) as running:
            async with grpc.aio.insecure_channel(running.address) as channel:
                client = TypedClient(channel)
                events = (await client.call("ListEvents", pipeline_name="locked")).events
                newest = max(event.event_no for event in events if event.type == pb.Event.LOCK)
                assert (await client.call("GetPipeline", name="locked")).lock.lock_no == newest
                await client.call("UnlockPipeline", name="locked", lock_no=newest)
                second = await trigger(client, "locked", "2")
                back = await rollback(client, second.id, redeploy_last_completed=True)
                assert (await status(client, back.redeployed_by)).version == "1"
            assert running.stop() == 0
        [locked] = sql.execute("SELECT count(*) FROM dp_pipelines WHERE lock_no IS NOT NULL").fetchall()
        assert locked == (0,)
