"""Locks: people freeze a pipeline with a reason; what goes on, what stops, and what starts it again."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from grpc import StatusCode

from support.clients import Answer, Client, Refused

QUEUE = 2


async def trigger(client: Client, pipeline: str, version: str = "1", **more: Any) -> Answer:
    return await client.call("TriggerDeployment", pipeline_name=pipeline, version=version, **more)


async def status(client: Client, id: str) -> str:
    return (await client.call("GetDeploymentStatus", deployment_id=id)).status_name


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def test_a_lock_until_the_end_of_time_is_shown_to_the_microsecond(
    client: Client, pipeline: str
) -> None:
    expires_at = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    locked = await client.call("LockPipeline", name=pipeline, reason="for good", expires_at=expires_at)
    assert locked.lock.expires_at.ToDatetime(UTC) == expires_at


@pytest.mark.parametrize("on_busy", [1, 2, 3])
async def test_a_locked_pipeline_refuses_triggers(client: Client, pipeline: str, on_busy: int) -> None:
    expires_at = soon(3600)
    locked = await client.call(
        "LockPipeline", name=pipeline, reason="freeze\nfor the fair", owner="ops", expires_at=expires_at
    )
    assert (locked.lock.owner, locked.lock.reason) == ("ops", "freeze\nfor the fair")
    assert locked.lock.expires_at.ToDatetime(UTC) == expires_at
    assert locked.message == (await client.call("GetPipeline", name=pipeline)).message
    with pytest.raises(Refused) as refused:
        await trigger(client, pipeline, on_busy=on_busy)
    assert (refused.value.code, refused.value.reason) == (
        StatusCode.FAILED_PRECONDITION,
        "PIPELINE_LOCKED",
    )
    assert refused.value.facts["owner"] == "ops"
    assert refused.value.facts["lock_reason"] == "freeze\nfor the fair"
    assert refused.value.facts["expires_at"] == expires_at.isoformat(timespec="milliseconds").replace(
        "+00:00", "Z"
    )
    assert "ops" in refused.value.message
    assert "freeze" in refused.value.message
    await client.call("UnlockPipeline", name=pipeline)
    assert (await trigger(client, pipeline, on_busy=on_busy)).status_name == "IN_PROGRESS"


async def test_busy_is_judged_before_locked(client: Client, pipeline: str) -> None:
    await trigger(client, pipeline)
    await client.call("LockPipeline", name=pipeline, reason="r")
    for on_busy, reason in ((1, "PIPELINE_BUSY"), (2, "PIPELINE_LOCKED"), (3, "PIPELINE_LOCKED")):
        with pytest.raises(Refused) as refused:
            await trigger(client, pipeline, on_busy=on_busy, request_id="asks postgres")
        assert refused.value.reason == reason


async def test_under_a_lock_what_is_active_goes_on_and_nothing_starts(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline)
    waiting = await trigger(client, pipeline, on_busy=QUEUE)
    await client.call("LockPipeline", name=pipeline, reason="an incident", owner="ops")
    for _ in range(3):
        last = await client.call("AdvanceStage", deployment_id=active.id)
    assert last.status_name == "COMPLETED"
    waits = await client.call("GetDeploymentStatus", deployment_id=waiting.id)
    assert (waits.status_name, waits.queue_position) == ("PENDING", 1)
    assert waits.cause.code == 5  # LOCKED
    assert "ops" in waits.cause.message
    assert "an incident" in waits.cause.message


@pytest.mark.parametrize("start_next", [True, False])
async def test_unlocking_starts_the_next_only_if_asked(
    client: Client, pipeline: str, start_next: bool
) -> None:
    active = await trigger(client, pipeline)
    first, second = [await trigger(client, pipeline, on_busy=QUEUE) for _ in range(2)]
    await client.call("LockPipeline", name=pipeline, reason="r")
    await client.call("CancelDeployment", deployment_id=active.id)
    unlocked = await client.call("UnlockPipeline", name=pipeline, start_next=start_next, request_id="u")
    assert not unlocked.pipeline.HasField("lock")
    if start_next:
        assert unlocked.started.id == first.id
        assert await status(client, first.id) == "IN_PROGRESS"
    else:
        assert not unlocked.HasField("started")
        waits = await client.call("GetDeploymentStatus", deployment_id=first.id)
        assert waits.cause.code == 6  # NOT_RESUMED
        assert "UnlockPipeline" in waits.cause.message
    again = await client.call("UnlockPipeline", name=pipeline, start_next=start_next, request_id="u")
    assert (again.message, again.replayed) == (unlocked.message, True)
    assert await status(client, second.id) == "PENDING"


async def test_an_expired_lock_is_no_lock(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline)
    waiting = [await trigger(client, pipeline, str(n), on_busy=QUEUE) for n in range(2)]
    await client.call("LockPipeline", name=pipeline, reason="r", expires_at=soon(1))
    await client.call("CancelDeployment", deployment_id=active.id)
    await asyncio.sleep(1.1)
    assert not (await client.call("GetPipeline", name=pipeline)).HasField("lock")
    state = await client.call("GetPipelineState", name=pipeline)
    assert not state.HasField("active")
    assert state.queue[0].cause.code == 6  # NOT_RESUMED
    assert "TriggerDeployment" in state.queue[0].cause.message
    # The next trigger starts the line, and is itself judged after that.
    with pytest.raises(Refused) as refused:
        await trigger(client, pipeline, "new")
    assert (refused.value.reason, refused.value.facts["deployment_id"]) == (
        "PIPELINE_BUSY",
        waiting[0].id,
    )
    assert await status(client, waiting[0].id) == "IN_PROGRESS"
    assert await status(client, waiting[1].id) == "PENDING"


async def test_a_queued_trigger_behind_an_expired_lock_starts_the_line_and_waits(
    client: Client, pipeline: str
) -> None:
    active = await trigger(client, pipeline)
    waiting = await trigger(client, pipeline, on_busy=QUEUE)
    await client.call("LockPipeline", name=pipeline, reason="r", expires_at=soon(1))
    await client.call("CancelDeployment", deployment_id=active.id)
    await asyncio.sleep(1.1)
    last = await trigger(client, pipeline, on_busy=QUEUE)
    assert (last.status_name, last.queue_position) == ("PENDING", 1)
    assert await status(client, waiting.id) == "IN_PROGRESS"


async def test_a_line_behind_an_expired_lock_can_be_resumed_by_hand(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline)
    waiting = await trigger(client, pipeline, on_busy=QUEUE)
    await client.call("LockPipeline", name=pipeline, reason="r", expires_at=soon(1))
    await client.call("CancelDeployment", deployment_id=active.id)
    await asyncio.sleep(1.1)
    resumed = await client.call("UnlockPipeline", name=pipeline, start_next=True)
    assert resumed.started.id == waiting.id


async def test_a_lock_is_never_overwritten(client: Client, pipeline: str) -> None:
    first: dict[str, Any] = {"name": pipeline, "reason": "an incident", "owner": "ops"}
    locked = await client.call("LockPipeline", **first)
    again = await client.call("LockPipeline", **first)
    assert (again.message, again.replayed) == (locked.message, True)
    for other in ({"reason": "a fair"}, {"owner": "dev"}, {"expires_at": soon(60)}):
        with pytest.raises(Refused) as refused:
            await client.call("LockPipeline", **{**first, **other})
        assert refused.value.reason == "PIPELINE_LOCKED"
        assert refused.value.facts["lock_reason"] == "an incident"
    assert (await client.call("GetPipeline", name=pipeline)).message == locked.message


@pytest.mark.parametrize("start_next", [True, False])
async def test_unlocking_what_is_not_locked_is_refused(
    client: Client, pipeline: str, start_next: bool
) -> None:
    with pytest.raises(Refused) as refused:
        await client.call("UnlockPipeline", name=pipeline, start_next=start_next)
    assert (refused.value.code, refused.value.reason) == (
        StatusCode.FAILED_PRECONDITION,
        "PIPELINE_NOT_LOCKED",
    )


@pytest.mark.parametrize(
    ("fields", "broken"),
    [
        ({"reason": ""}, "reason"),
        ({"reason": "r", "owner": "x\n"}, "owner"),
        ({"reason": "r", "expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expires_at"),
        ({"reason": "r", "expires_at": {"seconds": 2**60}}, "expires_at"),
    ],
)
async def test_a_lock_that_makes_no_sense_is_refused(
    client: Client, pipeline: str, fields: dict[str, Any], broken: str
) -> None:
    with pytest.raises(Refused) as refused:
        await client.call("LockPipeline", name=pipeline, **fields)
    assert (refused.value.code, refused.value.facts["fields"]) == (
        StatusCode.INVALID_ARGUMENT,
        broken,
    )


async def test_a_lock_that_expires_while_it_is_judged_is_told_as_it_was(
    client: Client, pipeline: str, sql: psycopg.Connection
) -> None:
    for number in range(60):
        sql.execute(
            "UPDATE dp_pipelines SET lock_owner = '', lock_reason = 'r', locked_at = now(),"
            " lock_expires_at = clock_timestamp() + %s * interval '1 ms' WHERE name = %s",
            [2 + number / 10, pipeline],
        )
        started = None
        while started is None:
            try:
                started = await trigger(client, pipeline, request_id=f"{number} asks postgres")
            except Refused as refused:
                if refused.reason != "PIPELINE_LOCKED":
                    raise
        await client.call("CancelDeployment", deployment_id=started.id)


async def test_no_pipeline_no_lock(client: Client) -> None:
    for method in ("LockPipeline", "UnlockPipeline"):
        with pytest.raises(Refused) as refused:
            await client.call(method, name="no-such-pipeline", reason="r")
        assert refused.value.reason == "PIPELINE_NOT_FOUND"
