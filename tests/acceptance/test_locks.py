"""Locks: people freeze a pipeline with a reason; what goes on, what stops, and what starts it again."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from grpc import StatusCode

from dp.v1 import deployment_pipeline_pb2 as pb
from support.clients import Client, Refused
from support.steps import advance, cancel, queue, refusal, status, trigger


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def test_a_lock_until_the_end_of_time_is_shown_to_the_microsecond(
    client: Client, pipeline: str
) -> None:
    expires_at = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    locked = await client.call("LockPipeline", name=pipeline, reason="for good", expires_at=expires_at)
    assert locked.lock.expires_at.ToDatetime(UTC) == expires_at


@pytest.mark.parametrize("on_busy", ["REJECT", "QUEUE", "SUPERSEDE"])
async def test_a_locked_pipeline_refuses_triggers(client: Client, pipeline: str, on_busy: str) -> None:
    expires_at = soon(3600)
    locked = await client.call(
        "LockPipeline", name=pipeline, reason="freeze\nfor the fair", owner="ops", expires_at=expires_at
    )
    assert (locked.lock.owner, locked.lock.reason) == ("ops", "freeze\nfor the fair")
    assert locked.lock.expires_at.ToDatetime(UTC) == expires_at
    assert locked.message == (await client.call("GetPipeline", name=pipeline)).message
    refused = await refusal(trigger(client, pipeline, on_busy=on_busy))
    assert (refused.code, refused.reason) == (StatusCode.FAILED_PRECONDITION, "PIPELINE_LOCKED")
    assert refused.facts["owner"] == "ops"
    assert refused.facts["lock_reason"] == "freeze\nfor the fair"
    assert refused.facts["expires_at"] == expires_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert "ops" in refused.message
    assert "freeze" in refused.message
    assert refused.facts["lock_no"] == str(locked.lock.lock_no)
    await client.call("UnlockPipeline", name=pipeline, lock_no=locked.lock.lock_no)
    assert (await trigger(client, pipeline, on_busy=on_busy)).status_name == "IN_PROGRESS"


async def test_busy_is_judged_before_locked(client: Client, pipeline: str) -> None:
    await trigger(client, pipeline)
    await client.call("LockPipeline", name=pipeline, reason="r")
    for on_busy, reason in (
        ("REJECT", "PIPELINE_BUSY"),
        ("QUEUE", "PIPELINE_LOCKED"),
        ("SUPERSEDE", "PIPELINE_LOCKED"),
    ):
        refused = await refusal(trigger(client, pipeline, on_busy=on_busy, request_id="asks postgres"))
        assert refused.reason == reason


async def test_under_a_lock_what_is_active_goes_on_and_nothing_starts(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline)
    waiting = await queue(client, pipeline)
    await client.call("LockPipeline", name=pipeline, reason="an incident", owner="ops")
    assert (await advance(client, active.id, times=3)).status_name == "COMPLETED"
    waits = await status(client, waiting.id)
    assert (waits.status_name, waits.queue_position) == ("PENDING", 1)
    assert waits.cause.code == pb.Cause.LOCKED
    assert "ops" in waits.cause.message
    assert "an incident" in waits.cause.message


@pytest.mark.parametrize("start_next", [True, False])
async def test_unlocking_starts_the_next_only_if_asked(
    client: Client, pipeline: str, start_next: bool
) -> None:
    active = await trigger(client, pipeline)
    first, second = [await queue(client, pipeline) for _ in range(2)]
    await client.call("LockPipeline", name=pipeline, reason="r", owner="ops")
    await cancel(client, active.id)
    fields: dict[str, Any] = {"name": pipeline, "owner": "ops", "start_next": start_next}
    unlocked = await client.call("UnlockPipeline", **fields, request_id="u")
    assert not unlocked.pipeline.HasField("lock")
    if start_next:
        assert unlocked.started.id == first.id
        assert (await status(client, first.id)).status_name == "IN_PROGRESS"
    else:
        assert not unlocked.HasField("started")
        waits = await status(client, first.id)
        assert waits.cause.code == pb.Cause.NOT_RESUMED
        assert "UnlockPipeline" in waits.cause.message
    again = await client.call("UnlockPipeline", **fields, request_id="u")
    assert (again.message, again.replayed) == (unlocked.message, True)
    assert (await status(client, second.id)).status_name == "PENDING"


async def test_an_expired_lock_has_no_effect(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline)
    waiting = [await queue(client, pipeline, str(n)) for n in range(2)]
    await client.call("LockPipeline", name=pipeline, reason="r", expires_at=soon(1))
    await cancel(client, active.id)
    await asyncio.sleep(1.1)
    assert not (await client.call("GetPipeline", name=pipeline)).HasField("lock")
    state = await client.call("GetPipelineState", name=pipeline)
    assert not state.HasField("active")
    assert state.queue[0].cause.code == pb.Cause.NOT_RESUMED
    assert "TriggerDeployment" in state.queue[0].cause.message
    # The next trigger starts the line, and is itself judged after that.
    refused = await refusal(trigger(client, pipeline, "new"))
    assert (refused.reason, refused.facts["deployment_id"]) == ("PIPELINE_BUSY", waiting[0].id)
    assert (await status(client, waiting[0].id)).status_name == "IN_PROGRESS"
    assert (await status(client, waiting[1].id)).status_name == "PENDING"


async def test_a_queued_trigger_behind_an_expired_lock_starts_the_line_and_waits(
    client: Client, pipeline: str
) -> None:
    active = await trigger(client, pipeline)
    waiting = await queue(client, pipeline)
    await client.call("LockPipeline", name=pipeline, reason="r", expires_at=soon(1))
    await cancel(client, active.id)
    await asyncio.sleep(1.1)
    last = await queue(client, pipeline)
    assert (last.status_name, last.queue_position) == ("PENDING", 1)
    assert (await status(client, waiting.id)).status_name == "IN_PROGRESS"


async def test_a_line_behind_an_expired_lock_can_be_resumed_by_hand(client: Client, pipeline: str) -> None:
    active = await trigger(client, pipeline)
    waiting = await queue(client, pipeline)
    await client.call("LockPipeline", name=pipeline, reason="r", expires_at=soon(1))
    await cancel(client, active.id)
    await asyncio.sleep(1.1)
    resumed = await client.call("UnlockPipeline", name=pipeline, start_next=True)
    assert resumed.started.id == waiting.id


async def test_a_lock_is_never_overwritten(client: Client, pipeline: str) -> None:
    first: dict[str, Any] = {"name": pipeline, "reason": "an incident", "owner": "ops"}
    locked = await client.call("LockPipeline", **first)
    again = await client.call("LockPipeline", **first)
    assert (again.message, again.replayed) == (locked.message, False)
    for other in ({"reason": "a fair"}, {"owner": "dev"}, {"expires_at": soon(60)}):
        refused = await refusal(client.call("LockPipeline", **{**first, **other}))
        assert refused.reason == "PIPELINE_LOCKED"
        assert refused.facts["lock_reason"] == "an incident"
    assert (await client.call("GetPipeline", name=pipeline)).message == locked.message


@pytest.mark.parametrize("start_next", [True, False])
async def test_unlocking_what_is_not_locked_is_refused(
    client: Client, pipeline: str, start_next: bool
) -> None:
    refused = await refusal(client.call("UnlockPipeline", name=pipeline, start_next=start_next))
    assert (refused.code, refused.reason) == (StatusCode.FAILED_PRECONDITION, "PIPELINE_NOT_LOCKED")


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
    refused = await refusal(client.call("LockPipeline", name=pipeline, **fields))
    assert (refused.code, refused.facts["fields"]) == (StatusCode.INVALID_ARGUMENT, broken)


async def test_a_lock_that_expires_during_the_check_is_reported_as_it_was(
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
        await cancel(client, started.id)


async def test_locking_or_unlocking_an_unknown_pipeline_is_refused(client: Client) -> None:
    for method in ("LockPipeline", "UnlockPipeline"):
        refused = await refusal(client.call(method, name="no-such-pipeline", reason="r"))
        assert refused.reason == "PIPELINE_NOT_FOUND"


async def test_a_lock_is_lifted_by_its_number_or_its_owner(client: Client, pipeline: str) -> None:
    locked = await client.call("LockPipeline", name=pipeline, reason="mine", owner="me")
    number = locked.lock.lock_no
    events = await client.call("ListEvents", pipeline_name=pipeline)
    assert (events.events[-1].type, events.events[-1].event_no) == (pb.Event.LOCK, number)
    for other in ({}, {"owner": "you"}, {"lock_no": number + 1}, {"lock_no": number + 1, "owner": "me"}):
        refused = await refusal(client.call("UnlockPipeline", name=pipeline, **other))
        assert (refused.code, refused.reason) == (StatusCode.ABORTED, "LOCK_MISMATCH")
        assert (refused.facts["lock_no"], refused.facts["owner"]) == (str(number), "me")
        assert str(number) in refused.message
    assert (await client.call("GetPipelineState", name=pipeline)).pipeline.lock == locked.lock
    await client.call("UnlockPipeline", name=pipeline, owner="me")
    again = await client.call("LockPipeline", name=pipeline, reason="mine", owner="me")
    assert again.lock.lock_no > number
    assert not (await client.call("UnlockPipeline", name=pipeline, lock_no=again.lock.lock_no)).HasField(
        "started"
    )


async def test_a_repeated_unlock_does_not_lift_the_next_persons_lock(client: Client, pipeline: str) -> None:
    mine = await client.call("LockPipeline", name=pipeline, reason="mine")
    unlock: dict[str, Any] = {"name": pipeline, "lock_no": mine.lock.lock_no}
    await client.call("UnlockPipeline", **unlock)
    theirs = await client.call("LockPipeline", name=pipeline, reason="theirs")
    blinds: list[dict[str, Any]] = [{}, {"owner": ""}, {"owner": "me"}]
    for blind in blinds:
        refused = await refusal(client.call("UnlockPipeline", name=pipeline, **blind))
        assert refused.reason == "LOCK_MISMATCH", "a lock without an owner is nobody's own"
    assert (await refusal(client.call("UnlockPipeline", **unlock))).reason == "LOCK_MISMATCH"
    assert (await client.call("GetPipeline", name=pipeline)).lock == theirs.lock


async def test_a_lock_is_changed_without_a_gap_and_keeps_its_number(client: Client, pipeline: str) -> None:
    first = (await client.call("LockPipeline", name=pipeline, reason="an hour", expires_at=soon(3600))).lock
    change: dict[str, Any] = {"name": pipeline, "reason": "a day", "owner": "me", "expires_at": soon(86_400)}
    refused = await refusal(client.call("LockPipeline", **change, lock_no=first.lock_no + 1))
    assert (refused.reason, refused.facts["asked_lock_no"]) == ("LOCK_MISMATCH", str(first.lock_no + 1))
    for _ in range(2):  # a repeat does no harm
        changed = (await client.call("LockPipeline", **change, lock_no=first.lock_no)).lock
        assert (changed.reason, changed.owner, changed.lock_no) == ("a day", "me", first.lock_no)
        assert (changed.locked_at, changed.expires_at.seconds - first.expires_at.seconds > 80_000) == (
            first.locked_at,
            True,
        )
    events = (await client.call("ListEvents", pipeline_name=pipeline)).events
    assert [event.type for event in events] == [pb.Event.CREATE, pb.Event.LOCK, pb.Event.LOCK]
    await client.call("UnlockPipeline", name=pipeline, lock_no=first.lock_no)
    refused = await refusal(client.call("LockPipeline", **change, lock_no=first.lock_no))
    assert refused.reason == "PIPELINE_NOT_LOCKED"


@pytest.mark.parametrize("on_busy", ["REJECT", "QUEUE"])
async def test_a_lock_that_was_acted_on_as_over_stays_over(
    client: Client, pipeline: str, sql: psycopg.Connection, on_busy: str
) -> None:
    """Even if Postgres's clock goes back."""
    active = await trigger(client, pipeline)
    if on_busy == "QUEUE":
        await queue(client, pipeline)
    await client.call("LockPipeline", name=pipeline, reason="r", expires_at=soon(3600))
    expire = "UPDATE dp_pipelines SET lock_expires_at = lock_expires_at - interval '2 h' WHERE name = %s"
    clock_goes_back = (
        "UPDATE dp_pipelines SET lock_expires_at = lock_expires_at + interval '2 h' WHERE name = %s"
    )
    sql.execute(expire, [pipeline])
    await cancel(client, active.id)
    if on_busy == "REJECT":
        await trigger(client, pipeline)
    state = await client.call("GetPipelineState", name=pipeline)
    assert state.HasField("active")
    sql.execute(clock_goes_back, [pipeline])
    assert not (await client.call("GetPipeline", name=pipeline)).HasField("lock")
    await cancel(client, state.active.id)
    assert (await trigger(client, pipeline)).status_name == "IN_PROGRESS"
