"""The waiting line: who waits, where, for whom, and what starts it."""

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import pytest
import redis as redis_client
from grpc import StatusCode

from dp.v1 import deployment_pipeline_pb2 as pb
from support.clients import Answer, Client
from support.steps import advance, cancel, complete, queue, refusal, rollback, status, trigger
from support.stores import RedisKey


async def test_a_queued_trigger_on_a_free_pipeline_starts(client: Client, pipeline: str) -> None:
    for on_busy in ("QUEUE", "SUPERSEDE"):
        started = await trigger(client, pipeline, on_busy=on_busy)
        assert started.status_name == "IN_PROGRESS"
        await cancel(client, started.id)


async def test_a_waiting_deployment_shows_its_place_and_its_cause(client: Client, pipeline: str) -> None:
    active = await queue(client, pipeline, "1")
    waiting = [await queue(client, pipeline, version) for version in "234"]
    for position, deployment in enumerate(waiting, start=1):
        for view in (deployment, await status(client, deployment.id)):
            assert (view.status_name, view.queue_position) == ("PENDING", position)
            assert (view.current_stage, view.HasField("started_at")) == ("", False)
            assert not view.HasField("stage_index")
            assert view.cause.code == pb.Cause.BUSY
            for fact in (active.id, '"1"', '"build"'):
                assert fact in view.cause.message
    history = await client.call("GetHistory", pipeline_name=pipeline)
    assert [d.queue_position for d in history.deployments] == [3, 2, 1, 0]
    assert not history.deployments[3].HasField("queue_position")
    await cancel(client, waiting[0].id)
    assert (await status(client, waiting[2].id)).queue_position == 2


@pytest.mark.parametrize("end", [complete, rollback, cancel])
async def test_l2_whatever_frees_the_slot_starts_the_next_in_the_same_commit(
    client: Client,
    pipeline: str,
    sql: psycopg.Connection,
    redis: redis_client.Redis,
    redis_key: RedisKey,
    end: Callable[[Client, str], Awaitable[Answer]],
) -> None:
    active = await queue(client, pipeline)
    redis.set(redis_key("active", pipeline), active.id)
    first, second = [await queue(client, pipeline, version) for version in "23"]
    await end(client, active.id)
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
    active = await queue(client, pipeline, "1")
    waiting = await queue(client, pipeline, "2")
    for method in ("AdvanceStage", "Rollback"):
        refused = await refusal(client.call(method, deployment_id=waiting.id))
        assert refused.reason == "DEPLOYMENT_NOT_IN_PROGRESS"
        assert refused.facts["status"] == "PENDING"
    cancelled = await cancel(client, waiting.id, reason="a typo")
    assert (cancelled.status_name, cancelled.cause.message) == ("CANCELLED", "a typo")
    assert cancelled.current_stage == ""
    assert (await status(client, active.id)).status_name == "IN_PROGRESS"


async def test_o4_a_trigger_never_overtakes(client: Client, pipeline: str) -> None:
    active = await queue(client, pipeline, "1")
    waiting = [await queue(client, pipeline, str(version)) for version in range(2, 6)]
    for following in waiting:
        refused = await refusal(trigger(client, pipeline, "new", on_busy="REJECT"))
        assert refused.facts["deployment_id"] == active.id
        await cancel(client, active.id)
        active = await status(client, following.id)
        assert active.status_name == "IN_PROGRESS"


async def test_supersede_takes_the_place_of_all_that_wait(client: Client, pipeline: str) -> None:
    active = await queue(client, pipeline, "1")
    older = [await queue(client, pipeline, version) for version in "23"]
    newer = await trigger(client, pipeline, "4", on_busy="SUPERSEDE")
    assert (newer.status_name, newer.queue_position) == ("PENDING", 1)
    for deployment in older:
        superseded = await status(client, deployment.id)
        assert (superseded.status_name, superseded.superseded_by) == ("CANCELLED", newer.id)
        assert superseded.cause.code == pb.Cause.SUPERSEDED
        assert newer.id in superseded.cause.message
    cancelled = await cancel(client, newer.id)
    assert (cancelled.cause.code, cancelled.superseded_by) == (pb.Cause.CANCELLED, "")
    assert (await status(client, active.id)).status_name == "IN_PROGRESS"


async def test_max_pending_bounds_the_line(client: Client, pipeline: str) -> None:
    await client.call("UpdatePipeline", name=pipeline, max_pending=2)
    await queue(client, pipeline, "1")
    for version in "23":
        await queue(client, pipeline, version)
    refused = await refusal(queue(client, pipeline, "4"))
    assert (refused.code, refused.reason) == (StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert refused.facts == {"pipeline": pipeline, "max_pending": "2"}
    assert refused.details["RetryInfo"].retry_delay.seconds >= 1
    assert (await trigger(client, pipeline, "5", on_busy="SUPERSEDE")).queue_position == 1
    await client.call("UpdatePipeline", name=pipeline, max_pending=0)
    for on_busy in ("QUEUE", "SUPERSEDE"):
        assert (await refusal(trigger(client, pipeline, "6", on_busy=on_busy))).reason == "QUEUE_FULL"


async def test_i1_a_queued_trigger_is_recognised(client: Client, pipeline: str) -> None:
    active = await queue(client, pipeline, "1")
    waiting = await queue(client, pipeline, "2", request_id="r")
    again = await queue(client, pipeline, "2", request_id="r")
    assert (again.message, again.replayed) == (waiting.message, True)
    await cancel(client, active.id)
    again = await queue(client, pipeline, "2", request_id="r")
    assert (again.id, again.status_name, again.replayed) == (waiting.id, "IN_PROGRESS", True)


async def test_each_of_many_concurrent_triggers_gets_a_place(client: Client, pipeline: str) -> None:
    answers = await asyncio.gather(*(queue(client, pipeline, str(n)) for n in range(50)))
    assert sorted(answer.seq for answer in answers) == list(range(1, 51))
    assert sorted(a.queue_position for a in answers if a.status_name == "PENDING") == list(range(1, 50))


async def test_o4_500_in_line_drain_without_a_gap(
    client: Client, pipeline: str, sql: psycopg.Connection
) -> None:
    await client.call("UpdatePipeline", name=pipeline, stages=["only"], max_pending=500)
    waiting = await asyncio.gather(*(queue(client, pipeline, str(n)) for n in range(500)))
    for deployment in sorted(waiting, key=lambda d: d.seq):
        completed = await advance(client, deployment.id)
        assert completed.status_name == "COMPLETED", "its turn had come"
    order = sql.execute(
        "SELECT seq FROM dp_deployments WHERE pipeline_name = %s ORDER BY started_at", [pipeline]
    ).fetchall()
    assert order == [(seq,) for seq in range(1, 501)]


async def test_a_deployment_in_line_keeps_the_stages_of_its_trigger(client: Client, pipeline: str) -> None:
    active = await queue(client, pipeline, "1")
    changes = [
        ["build", "test", "deploy", "verify"],
        ["build", "deploy", "verify"],
        ["compile", "deploy", "verify"],
        ["verify", "deploy", "compile"],
    ]
    waiting = [(await queue(client, pipeline, "2"), ["build", "test", "deploy"])]
    for stages in changes:
        await client.call("UpdatePipeline", name=pipeline, stages=stages)
        waiting.append((await queue(client, pipeline, "2"), stages))
    await complete(client, active.id)
    for deployment, stages in waiting:
        passed = []
        current = await status(client, deployment.id)
        while current.status_name == "IN_PROGRESS":
            passed.append(current.current_stage)
            current = await advance(client, deployment.id)
        assert (current.status_name, passed) == ("COMPLETED", stages)


async def test_the_state_shows_the_head_of_a_long_queue_and_counts_it(
    client: Client, new_name: Callable[[], str]
) -> None:
    name = new_name()
    await client.call("CreatePipeline", name=name, stages=["a"], max_pending=103)
    made = [await queue(client, name, str(n)) for n in range(104)]
    for limit, shown in ((0, 100), (103, 103), (2, 2)):
        state = await client.call("GetPipelineState", name=name, queue_limit=limit)
        assert [d.id for d in state.queue] == [d.id for d in made[1 : shown + 1]]
        assert [d.queue_position for d in state.queue] == list(range(1, shown + 1))
        assert state.pending_count == 103
    refused = await refusal(client.call("GetPipelineState", name=name, queue_limit=1001))
    assert refused.facts["fields"] == "queue_limit"
