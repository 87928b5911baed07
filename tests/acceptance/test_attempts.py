"""Calls that proxies and client libraries send again: what marks tell, and what a mesh's identity does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest
from grpc import StatusCode

from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import Client, TypedClient
from support.proxy import postgres_proxy
from support.steps import advance, cancel, refusal, rollback, status, trigger

# As Envoy marks what it sends again. gRPC's own mark, which only gRPC can set, is in test_retry_safety.
MARK = ("x-envoy-attempt-count", "2")


def of(identity: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    """The metadata of an attempt."""
    return [("x-request-id", f"{identity:-<16}"), *more]


def changes(sql: psycopg.Connection, pipeline: str) -> int:
    row = sql.execute("SELECT last_event_no FROM dp_pipelines WHERE name = %s", [pipeline]).fetchone()
    assert row
    return int(row[0])


async def blind(client: Client, pipeline: str) -> list[tuple[str, dict[str, Any]]]:
    """A change of each kind that could be made, without a token."""
    id = (await trigger(client, pipeline)).id
    await client.call("LockPipeline", name=pipeline, reason="r")
    return [
        ("TriggerDeployment", {"pipeline_name": pipeline, "version": "1", "on_busy": "QUEUE"}),
        ("AdvanceStage", {"deployment_id": id}),
        ("Rollback", {"deployment_id": id}),
        ("CancelDeployment", {"deployment_id": id}),
        ("LockPipeline", {"name": pipeline, "reason": "another"}),
        ("UnlockPipeline", {"name": pipeline}),
        ("UpdatePipeline", {"name": pipeline, "description": "d"}),
    ]


async def test_a_marked_repeat_without_a_token_changes_nothing(
    client: Client, pipeline: str, sql: psycopg.Connection
) -> None:
    changing = await blind(client, pipeline)
    before = changes(sql, pipeline)
    for method, fields in changing:
        refused = await refusal(client.call(method, **fields, metadata=[MARK]))
        assert (refused.code, refused.reason) == (StatusCode.ABORTED, "RETRY_WITHOUT_TOKEN"), method
        assert (refused.facts["call"], "request_id" in refused.facts["tokens"]) == (method, True)
        assert "request_id" in refused.message
    assert changes(sql, pipeline) == before
    definition = await client.call("GetPipeline", name=pipeline)
    again = await client.call(
        "CreatePipeline", name=pipeline, stages=definition.stages, metadata=[MARK]
    )  # needs no token
    assert again.message == definition.message


async def test_a_marked_repeat_with_a_token_is_judged_as_any_call(client: Client, pipeline: str) -> None:
    mark = [MARK]
    id = (await trigger(client, pipeline, request_id="t", metadata=mark)).id
    assert (await advance(client, id, expected_stage="build", metadata=mark)).current_stage == "test"
    fields: dict[str, Any] = {"name": pipeline, "description": "d", "metadata": mark}
    assert (await client.call("UpdatePipeline", **fields, expected_revision=1)).revision == 2
    locked = await client.call("LockPipeline", name=pipeline, reason="r", request_id="l", metadata=mark)
    number = locked.lock.lock_no
    await client.call("LockPipeline", name=pipeline, reason="q", lock_no=number, metadata=mark)
    await client.call("UnlockPipeline", name=pipeline, lock_no=number, metadata=mark)


async def test_a_refusal_that_may_be_ones_own_says_so(client: Client, pipeline: str) -> None:
    mark = [MARK]
    id = (await trigger(client, pipeline)).id
    await advance(client, id, expected_stage="build")
    await client.call("UpdatePipeline", name=pipeline, description="d", expected_revision=1)
    locked = await client.call("LockPipeline", name=pipeline, reason="r")
    await client.call("UnlockPipeline", name=pipeline, lock_no=locked.lock.lock_no)
    own: list[tuple[str, str, dict[str, Any]]] = [
        ("PIPELINE_BUSY", "TriggerDeployment", {"pipeline_name": pipeline, "version": "1"}),
        ("STAGE_MISMATCH", "AdvanceStage", {"deployment_id": id, "expected_stage": "build"}),
        ("REVISION_MISMATCH", "UpdatePipeline", {"name": pipeline, "expected_revision": 1, "stages": ["a"]}),
        ("PIPELINE_NOT_LOCKED", "UnlockPipeline", {"name": pipeline, "lock_no": locked.lock.lock_no}),
    ]
    for reason, method, fields in own:
        refused = await refusal(client.call(method, **fields, metadata=mark))
        assert (refused.reason, refused.facts["may_be_own"]) == (reason, "true")
        assert "its own first attempt" in refused.message
        # With a request_id it cannot be its own, and without a mark nobody knows.
        told: list[dict[str, Any]] = [{"metadata": mark, "request_id": "new"}, {}]
        for more in told:
            refused = await refusal(client.call(method, **fields, **more))
            assert (refused.reason, "may_be_own" in refused.facts) == (reason, False)
    await cancel(client, id)
    refused = await refusal(advance(client, id, expected_stage="deploy", metadata=mark))
    assert (refused.reason, refused.facts["may_be_own"]) == ("DEPLOYMENT_ENDED", "true")


@pytest.mark.parametrize("mark", [[], [MARK]])
@pytest.mark.parametrize("on_busy", ["REJECT", "QUEUE"])
async def test_i1_a_mesh_that_sends_a_trigger_again_gets_the_answer_of_the_first(
    client: Client, pipeline: str, on_busy: str, mark: list[tuple[str, str]]
) -> None:
    if on_busy == "QUEUE":
        await trigger(client, pipeline, "0")
    first = await trigger(client, pipeline, on_busy=on_busy, metadata=of("one"))
    again = await trigger(client, pipeline, on_busy=on_busy, metadata=of("one", *mark))
    assert (again.id, again.replayed, first.replayed) == (first.id, True, False)
    # Applications pass the header on: with another request it is another call.
    if on_busy == "QUEUE":
        assert (await trigger(client, pipeline, "2", on_busy=on_busy, metadata=of("one"))).id != first.id
    else:
        refused = await refusal(trigger(client, pipeline, "2", metadata=of("one")))
        assert refused.facts["deployment_id"] == first.id
    history = await client.call("GetHistory", pipeline_name=pipeline)
    assert [deployment.version for deployment in history.deployments].count("1") == 1
    events = await client.call("ListEvents", pipeline_name=pipeline)
    assert not any(event.request_id for event in events.events)


async def test_i1_attempts_at_once_start_one(client: Client, pipeline: str) -> None:
    answers = await asyncio.gather(
        *(trigger(client, pipeline, on_busy="QUEUE", metadata=of("one")) for _ in range(8))
    )
    assert len({answer.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1


async def test_a_marked_repeat_whose_first_attempt_was_not_made_starts_nothing(
    client: Client, pipeline: str, sql: psycopg.Connection
) -> None:
    for on_busy in ("REJECT", "QUEUE", "SUPERSEDE"):
        refused = await refusal(trigger(client, pipeline, on_busy=on_busy, metadata=of("one", MARK)))
        assert refused.reason == "RETRY_WITHOUT_TOKEN"
    assert changes(sql, pipeline) == 1


async def test_an_identity_tells_a_repeat_for_a_while_only(
    client: Client, pipeline: str, sql: psycopg.Connection
) -> None:
    first = await trigger(client, pipeline, metadata=of("one"))
    await cancel(client, first.id)
    second = await trigger(client, pipeline, metadata=of("one"))
    assert second.id != first.id, "what it started has ended"
    await cancel(client, second.id)
    third = await trigger(client, pipeline, on_busy="QUEUE", metadata=of("two"))
    sql.execute(
        "UPDATE dp_deployments SET created_at = created_at - interval '61 s' WHERE id = %s", [third.id]
    )
    assert (await trigger(client, pipeline, on_busy="QUEUE", metadata=of("two"))).status_name == "PENDING"


async def test_redis_refuses_no_repeat_of_what_it_names(client: Client, pipeline: str) -> None:
    first = await trigger(client, pipeline, metadata=of("one"))
    busy = await refusal(trigger(client, pipeline, "2"))  # Redis knows
    again = await trigger(client, pipeline, metadata=of("one"))
    assert (again.id, busy.facts["deployment_id"]) == (first.id, first.id)


async def test_s5_an_advance_with_the_identity_of_one_that_was_made_skips_no_stage(
    client: Client, pipeline: str
) -> None:
    id = (await trigger(client, pipeline)).id
    assert (await advance(client, id, metadata=of("one"))).current_stage == "test"
    refused = await refusal(advance(client, id, metadata=of("one")))
    assert (refused.code, refused.reason) == (StatusCode.ABORTED, "RETRY_WITHOUT_TOKEN")
    assert "expected_stage" in refused.message
    assert (await advance(client, id, metadata=of("two"))).current_stage == "deploy"
    # A token says more than the mesh.
    assert (await advance(client, id, expected_stage="deploy", metadata=of("one"))).status_name == "COMPLETED"


async def test_other_changes_need_no_identity(client: Client, pipeline: str) -> None:
    id = (await trigger(client, pipeline)).id
    await rollback(client, id, metadata=of("one"))
    assert (await refusal(rollback(client, id, metadata=of("one")))).reason == "DEPLOYMENT_ENDED"


async def test_what_is_too_short_or_too_long_is_no_identity(client: Client, pipeline: str) -> None:
    for identity in ("x" * 15, "x" * 129):
        ids = {
            (await trigger(client, pipeline, on_busy="QUEUE", metadata=[("x-request-id", identity)])).id
            for _ in range(2)
        }
        assert len(ids) == 2


@pytest.mark.parametrize("mesh", [[], of("one")])
async def test_d1_the_services_own_repeat_finds_its_work_whoever_marked_the_call(
    settings: Settings, client: Client, pipeline: str, mesh: list[tuple[str, str]]
) -> None:
    async with (
        postgres_proxy(settings.database_url) as (proxy, url),
        running(settings.model_copy(update={"database_url": url, "pool_size": 1})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        there = TypedClient(channel)
        other = f"{pipeline}-warm"
        await client.call("CreatePipeline", name=other, stages=["a", "b"])
        await advance(there, (await trigger(there, other, metadata=mesh)).id, metadata=mesh)
        proxy.lose_one_answer = True
        id = (await trigger(there, pipeline, metadata=mesh)).id
        assert not proxy.lose_one_answer
        proxy.lose_one_answer = True
        assert (await advance(there, id, metadata=mesh)).current_stage == "test"
        assert not proxy.lose_one_answer
    assert (await status(client, id)).current_stage == "test"


@pytest.fixture
async def strict(settings: Settings) -> AsyncIterator[Client]:
    demanding = settings.model_copy(update={"require_tokens": True, "attempt_id_headers": "x-a,x-b"})
    async with (
        running(demanding) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        yield TypedClient(channel)


async def test_a_strict_server_takes_no_change_without_a_token(
    strict: Client, client: Client, pipeline: str, sql: psycopg.Connection
) -> None:
    changing = [*await blind(client, pipeline), ("CreatePipeline", {"name": "new", "stages": ["a"]})]
    before = changes(sql, pipeline)
    for method, fields in changing:
        for metadata in ([], of("one"), [MARK]):
            refused = await refusal(strict.call(method, **fields, metadata=metadata))
            assert (refused.code, refused.reason) == (StatusCode.INVALID_ARGUMENT, "TOKEN_REQUIRED")
            assert refused.facts["tokens"].split(",")[0] == "request_id"
    refused = await refusal(strict.call("AdvanceStage", deployment_id="x"))
    assert refused.reason == "INVALID_FIELD", "a broken field is told first"
    assert changes(sql, pipeline) == before
    id = changing[1][1]["deployment_id"]
    assert (await advance(strict, id, expected_stage="build")).current_stage == "test"
    assert (await client.call("GetPipeline", name=pipeline)).revision == 1
    await strict.call("UpdatePipeline", name=pipeline, description="d", expected_revision=1)
    locked = await client.call("GetPipeline", name=pipeline)
    await strict.call("UnlockPipeline", name=pipeline, lock_no=locked.lock.lock_no)
    await strict.call("CancelDeployment", deployment_id=id, request_id="c")


async def test_which_headers_count_is_a_setting(settings: Settings, client: Client, pipeline: str) -> None:
    async with (
        running(settings.model_copy(update={"attempt_id_headers": "x-a,x-b"})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        there = TypedClient(channel)
        first = await trigger(there, pipeline, on_busy="QUEUE", metadata=[("x-b", "b" * 16)])
        again = await trigger(there, pipeline, on_busy="QUEUE", metadata=[("x-b", "b" * 16), *of("new")])
        assert again.id == first.id
        other = await trigger(
            there, pipeline, on_busy="QUEUE", metadata=[("x-b", "b" * 16), ("x-a", "a" * 16)]
        )
        assert other.id != first.id, "the first that is named counts"
        assert (await trigger(there, pipeline, on_busy="QUEUE", metadata=of("one"))).id != (
            await trigger(there, pipeline, on_busy="QUEUE", metadata=of("one"))
        ).id


async def test_a_request_id_of_the_services_own_form_is_refused(client: Client, pipeline: str) -> None:
    refused = await refusal(trigger(client, pipeline, request_id="auto-1"))
    assert (refused.reason, refused.facts["fields"]) == ("INVALID_FIELD", "request_id")


async def test_i3_a_wish_that_was_fulfilled_already_is_not_stored(client: Client, pipeline: str) -> None:
    stages = ["build", "test", "deploy"]
    created = await client.call("CreatePipeline", name=pipeline, stages=stages, request_id="r")
    assert not created.replayed
    lock: dict[str, Any] = {"name": pipeline, "reason": "r", "owner": "ops"}
    await client.call("LockPipeline", **lock)
    locked = await client.call("LockPipeline", **lock, request_id="r")
    assert not locked.replayed
    assert not (await client.call("UnlockPipeline", name=pipeline, owner="ops", request_id="r")).replayed
