"""Where a pipeline stands, and how it came there."""

from typing import Any

import pytest

from dp.v1 import deployment_pipeline_pb2 as pb
from support.clients import Client
from support.steps import advance, complete, queue, refusal, rollback, status, trigger

Type = pb.Event.Type
Status = pb.DeploymentStatus.Status


async def test_the_state_shows_what_is_live_in_each_stage(client: Client, pipeline: str) -> None:
    state = await client.call("GetPipelineState", name=pipeline)
    assert [(stage.name, stage.deployment_id) for stage in state.stages] == [
        ("build", ""),
        ("test", ""),
        ("deploy", ""),
    ]
    assert not state.HasField("active")
    first = await trigger(client, pipeline, "1")
    await complete(client, first.id)
    second = await trigger(client, pipeline, "2")
    await advance(client, second.id, times=2)
    third = await queue(client, pipeline, "3")
    await rollback(client, second.id)
    await advance(client, third.id)
    fourth = await queue(client, pipeline, "4")
    await client.call("LockPipeline", name=pipeline, reason="r", owner="ops")
    state = await client.call("GetPipelineState", name=pipeline)
    assert [(stage.name, stage.version, stage.seq) for stage in state.stages] == [
        ("build", "3", 3),
        ("test", "2", 2),
        ("deploy", "1", 1),
    ]
    assert state.stages[2].deployment_id == first.id
    completed = await status(client, first.id)
    assert state.stages[2].completed_at == completed.completed_at
    assert (state.active.id, state.active.current_stage) == (third.id, "test")
    assert [(d.id, d.queue_position) for d in state.queue] == [(fourth.id, 1)]
    assert (state.pending_count, state.pipeline.lock.owner) == (1, "ops")


async def test_the_state_of_an_unknown_pipeline_is_refused(client: Client) -> None:
    refused = await refusal(client.call("GetPipelineState", name="no-such-pipeline"))
    assert refused.reason == "PIPELINE_NOT_FOUND"


async def test_events_tell_what_happened_and_why(client: Client, pipeline: str) -> None:
    first = await trigger(client, pipeline, "1", reason="nightly", request_id="r1")
    second = await queue(client, pipeline, "2")
    third = await trigger(client, pipeline, "3", on_busy="SUPERSEDE")
    await client.call("UpdatePipeline", name=pipeline, description="d")
    await client.call("LockPipeline", name=pipeline, reason="freeze", owner="ops", request_id="r2")
    await advance(client, first.id, reason="passed")
    await client.call("UnlockPipeline", name=pipeline, owner="ops")
    await rollback(client, first.id, reason="on fire")
    await complete(client, third.id)
    listed = await client.call("ListEvents", pipeline_name=pipeline)
    none, pending, in_progress = None, Status.PENDING, Status.IN_PROGRESS
    told = [
        (
            *(e.event_no, e.type, e.deployment_id, e.stage),
            *(getattr(e, field) if e.HasField(field) else none for field in ("from_status", "to_status")),
            *(e.reason, e.request_id),
        )
        for e in listed.events
    ]
    assert told == [
        (1, Type.CREATE, "", "", none, none, "", ""),
        (2, Type.TRIGGER, first.id, "build", none, in_progress, "nightly", "r1"),
        (3, Type.QUEUE, second.id, "", none, pending, "", ""),
        (4, Type.SUPERSEDE, second.id, "", pending, Status.CANCELLED, told[3][6], ""),
        (5, Type.QUEUE, third.id, "", none, pending, "", ""),
        (6, Type.UPDATE, "", "", none, none, "", ""),
        (7, Type.LOCK, "", "", none, none, "freeze", "r2"),
        (8, Type.ADVANCE, first.id, "build", in_progress, in_progress, "passed", ""),
        (9, Type.UNLOCK, "", "", none, none, "", ""),
        (10, Type.ROLLBACK, first.id, "test", in_progress, Status.ROLLED_BACK, "on fire", ""),
        (11, Type.PROMOTE, third.id, "build", pending, in_progress, "", ""),
        (12, Type.ADVANCE, third.id, "build", in_progress, in_progress, "", ""),
        (13, Type.ADVANCE, third.id, "test", in_progress, in_progress, "", ""),
        (14, Type.COMPLETE, third.id, "deploy", in_progress, Status.COMPLETED, "", ""),
    ]
    assert third.id in told[3][6]
    assert listed.events[9].created_at == listed.events[10].created_at
    assert not listed.next_page_token
    of_one = await client.call("ListEvents", deployment_id=third.id)
    assert [event.event_no for event in of_one.events] == [5, 11, 12, 13, 14]


async def test_events_come_page_by_page(client: Client, pipeline: str) -> None:
    await complete(client, (await trigger(client, pipeline)).id)
    numbers, token = [], ""
    while True:
        page = await client.call("ListEvents", pipeline_name=pipeline, page_size=2, page_token=token)
        numbers += [event.event_no for event in page.events]
        if not (token := page.next_page_token):
            break
    assert numbers == [1, 2, 3, 4, 5]
    later = await client.call("ListEvents", pipeline_name=pipeline, after_event_no=3)
    assert [event.event_no for event in later.events] == [4, 5]
    nothing_new = await client.call("ListEvents", pipeline_name=pipeline, after_event_no=5)
    assert (len(nothing_new.events), nothing_new.next_page_token) == (0, "")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "INVALID_FIELD"),
        ({"pipeline_name": "a", "after_event_no": -1}, "INVALID_FIELD"),
        ({"pipeline_name": "a", "page_size": 1001}, "INVALID_FIELD"),
        ({"pipeline_name": "a", "page_token": "x"}, "INVALID_FIELD"),
        ({"deployment_id": ""}, "INVALID_FIELD"),
        ({"pipeline_name": "no-such-pipeline"}, "PIPELINE_NOT_FOUND"),
        ({"deployment_id": "0199f6a2-7f2c-7bd0-8a55-1c2d3e4f5a6b"}, "DEPLOYMENT_NOT_FOUND"),
    ],
)
async def test_events_that_cannot_be_listed_are_refused(
    client: Client, fields: dict[str, Any], reason: str
) -> None:
    assert (await refusal(client.call("ListEvents", **fields))).reason == reason
