"""The waiting line: who waits, where, for whom, and what starts it."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import redis as redis_client
from grpc import StatusCode

from support.clients import Answer, Client, Refused
from support.stores import RedisKey

QUEUE, SUPERSEDE = 2, 3


async def trigger(client: Client, pipeline: str, version: str, on_busy: int = QUEUE, **more: Any) -> Answer:
    return await client.call(
        "TriggerDeployment", pipeline_name=pipeline, version=version, on_busy=on_busy, **more
    )


async def end(client: Client, id: str, how: str) -> None:
    match how:
        case "completion":
            for _ in range(3):
                await client.call("AdvanceStage", deployment_id=id)
        case "rollback":
            await client.call("Rollback", deployment_id=id)
        case _:
            await client.call("CancelDeployment", deployment_id=id)


async def status(client: Client, id: str) -> Answer:
    return await client.call("GetDeploymentStatus", deployment_id=id)


async def test_a_queued_trigger_on_a_free_pipeline_starts(client: Client, pipeline: str) -> None:
    for on_busy in (QUEUE, SUPERSEDE):
        started = await trigger(client, pipeline, "1", on_busy)
        assert started.status_name == "IN_PROGRESS"
        await end(client, started.id, "cancel")


async def test_who_waits_is_told_where_and_for_whom(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline, "1")
    waiting = [await trigger(client, pipeline, version) for version in "234"]
    for position, deployment in enumerate(waiting, start=1):
        for view in (deployment, await status(client, deployment.id)):
            assert (view.status_name, view.queue_position) == ("PENDING", position)
            assert (view.current_stage, view.HasField("started_at")) == ("", False)
            assert not view.HasField("stage_index")
            assert view.cause.code == 4  # BUSY
            for fact in (active.id, '"1"', '"build"'):
                assert fact in view.cause.message
    history = await client.call("GetHistory", pipeline_name=pipeline)
    assert [d.queue_position for d in history.deployments] == [3, 2, 1, 0]
    assert not history.deployments[3].HasField("queue_position")
    await end(client, waiting[0].id, "cancel")
    assert (await status(client, waiting[2].id)).queue_position == 2


@pytest.mark.parametrize("how", ["completion", "rollback", "cancel"])
async def test_l2_whatever_frees_the_slot_starts_the_next_in_the_same_commit(
    client: Client,
    pipeline: str,
    sql: psycopg.Connection,
    redis: redis_client.Redis,
    redis_key: RedisKey,
    how: str,
) -> None:
    active = await trigger(client, pipeline, "1")
    redis.set(redis_key("active", pipeline), active.id)
    first, second = [await trigger(client, pipeline, version) for version in "23"]
    await end(client, active.id, how)
    started = await status(client, first.id)
    assert (started.status_name, started.current_stage) == ("IN_PROGRESS", "build")
    assert not started.HasField("cause")
    assert (await status(client, second.id)).queue_position == 1
    commits = sql.execute(
        "SELECT xmin::text FROM dp_events WHERE pipeline_name = %s ORDER BY event_no DESC LIMIT 2",
        [pipeline],
    ).fetchall()
    assert commits[0] == commits[1]
    assert redis.get(redis_key("active", pipeline)) == first.id.encode(), "handed over"


async def test_a_waiting_deployment_can_be_cancelled_and_not_advanced(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline, "1")
    waiting = await trigger(client, pipeline, "2")
    for method in ("AdvanceStage", "Rollback"):
        with pytest.raises(Refused) as refused:
            await client.call(method, deployment_id=waiting.id)
        assert refused.value.reason == "DEPLOYMENT_NOT_IN_PROGRESS"
        assert refused.value.facts["status"] == "PENDING"
    cancelled = await client.call("CancelDeployment", deployment_id=waiting.id, reason="a typo")
    assert (cancelled.status_name, cancelled.cause.message) == ("CANCELLED", "a typo")
    assert cancelled.current_stage == ""
    assert (await status(client, active.id)).status_name == "IN_PROGRESS"


async def test_o4_a_trigger_never_overtakes(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline, "1")
    waiting = [await trigger(client, pipeline, str(version)) for version in range(2, 6)]
    for following in waiting:
        with pytest.raises(Refused) as refused:
            await trigger(client, pipeline, "new", on_busy=1)
        assert refused.value.facts["deployment_id"] == active.id
        await end(client, active.id, "cancel")
        active = await status(client, following.id)
        assert active.status_name == "IN_PROGRESS"


async def test_supersede_takes_the_place_of_all_that_wait(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline, "1")
    older = [await trigger(client, pipeline, version) for version in "23"]
    newer = await trigger(client, pipeline, "4", SUPERSEDE)
    assert (newer.status_name, newer.queue_position) == ("PENDING", 1)
    for deployment in older:
        superseded = await status(client, deployment.id)
        assert (superseded.status_name, superseded.superseded_by) == ("CANCELLED", newer.id)
        assert superseded.cause.code == 3  # SUPERSEDED
        assert newer.id in superseded.cause.message
    cancelled = await client.call("CancelDeployment", deployment_id=newer.id)
    assert (cancelled.cause.code, cancelled.superseded_by) == (1, "")  # CANCELLED
    assert (await status(client, active.id)).status_name == "IN_PROGRESS"


async def test_max_pending_bounds_the_line(client: Client, pipeline: str) -> None:
    await client.call("UpdatePipeline", name=pipeline, max_pending=2)
    await trigger(client, pipeline, "1")
    for version in "23":
        await trigger(client, pipeline, version)
    with pytest.raises(Refused) as refused:
        await trigger(client, pipeline, "4")
    assert (refused.value.code, refused.value.reason) == (
        StatusCode.RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
    )
    assert refused.value.facts == {"pipeline": pipeline, "max_pending": "2"}
    assert refused.value.details["RetryInfo"].retry_delay.seconds >= 1
    assert (await trigger(client, pipeline, "5", SUPERSEDE)).queue_position == 1
    await client.call("UpdatePipeline", name=pipeline, max_pending=0)
    for on_busy in (QUEUE, SUPERSEDE):
        with pytest.raises(Refused) as refused:
            await trigger(client, pipeline, "6", on_busy)
        assert refused.value.reason == "QUEUE_FULL"


async def test_i1_a_queued_trigger_is_recognised(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline, "1")
    waiting = await trigger(client, pipeline, "2", request_id="r")
    again = await trigger(client, pipeline, "2", request_id="r")
    assert (again.message, again.replayed) == (waiting.message, True)
    await end(client, active.id, "cancel")
    again = await trigger(client, pipeline, "2", request_id="r")
    assert (again.id, again.status_name, again.replayed) == (waiting.id, "IN_PROGRESS", True)


async def test_triggers_at_once_all_get_a_place(client: Client, pipeline: str) -> None:
    answers = await asyncio.gather(*(trigger(client, pipeline, str(n)) for n in range(50)))
    assert sorted(answer.seq for answer in answers) == list(range(1, 51))
    assert sorted(a.queue_position for a in answers if a.status_name == "PENDING") == list(range(1, 50))


async def test_o4_500_in_line_drain_without_a_gap(
    client: Client, pipeline: str, sql: psycopg.Connection
) -> None:
    await client.call("UpdatePipeline", name=pipeline, stages=["only"], max_pending=500)
    waiting = await asyncio.gather(*(trigger(client, pipeline, str(n)) for n in range(500)))
    for deployment in sorted(waiting, key=lambda d: d.seq):
        completed = await client.call("AdvanceStage", deployment_id=deployment.id)
        assert completed.status_name == "COMPLETED", "its turn had come"
    order = sql.execute(
        "SELECT seq FROM dp_deployments WHERE pipeline_name = %s ORDER BY started_at", [pipeline]
    ).fetchall()
    assert order == [(seq,) for seq in range(1, 501)]


async def test_a_deployment_in_line_keeps_the_stages_of_its_trigger(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline, "1")
    changes = [
        ["build", "test", "deploy", "verify"],
        ["build", "deploy", "verify"],
        ["compile", "deploy", "verify"],
        ["verify", "deploy", "compile"],
    ]
    waiting = [(await trigger(client, pipeline, "2"), ["build", "test", "deploy"])]
    for stages in changes:
        await client.call("UpdatePipeline", name=pipeline, stages=stages)
        waiting.append((await trigger(client, pipeline, "2"), stages))
    await end(client, active.id, "completion")
    for deployment, stages in waiting:
        passed = []
        current = await status(client, deployment.id)
        while current.status_name == "IN_PROGRESS":
            passed.append(current.current_stage)
            current = await client.call("AdvanceStage", deployment_id=deployment.id)
        assert (current.status_name, passed) == ("COMPLETED", stages)


async def test_the_state_shows_the_head_of_a_long_queue_and_counts_it(
    client: Client, new_name: Callable[[], str]
) -> None:
    name = new_name()
    await client.call("CreatePipeline", name=name, stages=["a"], max_pending=103)
    made = [await trigger(client, name, str(n)) for n in range(104)]
    for limit, shown in ((0, 100), (103, 103), (2, 2)):
        state = await client.call("GetPipelineState", name=name, queue_limit=limit)
        assert [d.id for d in state.queue] == [d.id for d in made[1 : shown + 1]]
        assert [d.queue_position for d in state.queue] == list(range(1, shown + 1))
        assert state.pending_count == 103
    with pytest.raises(Refused) as refused:
        await client.call("GetPipelineState", name=name, queue_limit=1001)
    assert refused.value.facts["fields"] == "queue_limit"
