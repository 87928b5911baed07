"""Input that no well-behaved client sends: a clear refusal, nothing stored, and the server goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import psycopg
import pytest

from dp.v1 import deployment_pipeline_pb2 as pb
from support.clients import Answer, Client, Refused
from support.steps import cancel, refusal, trigger


def stored(sql: psycopg.Connection) -> tuple[Any, ...]:
    row = sql.execute(
        "SELECT (SELECT count(*) FROM dp_pipelines), (SELECT count(*) FROM dp_deployments),"
        " (SELECT count(*) FROM dp_events)"
    ).fetchone()
    assert row
    return row


async def invalid(call: Awaitable[Answer]) -> Refused:
    """Awaits a call that must be refused for its fields, and returns the refusal."""
    refused = await refusal(call)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    return refused


BAD_TEXTS = ["\x00", "a\x00b", "\x1b[2J", "\u202e", "x" * 5000]


@pytest.mark.parametrize("bad", BAD_TEXTS, ids=repr)
async def test_bad_text_is_refused_in_every_field(
    client: Client, pipeline: str, sql: psycopg.Connection, bad: str
) -> None:
    id = (await trigger(client, pipeline)).id
    before = stored(sql)
    requests: dict[str, dict[str, Any]] = {
        "CreatePipeline": {"name": bad, "stages": [bad], "description": bad, "request_id": bad},
        "GetPipeline": {"name": bad},
        "ListPipelines": {"page_token": bad},
        "UpdatePipeline": {"name": bad, "stages": [bad], "description": bad, "request_id": bad},
        "TriggerDeployment": {
            "pipeline_name": bad,
            "version": bad,
            "reason": bad,
            "request_id": bad,
            "labels": {bad: bad},
        },
        "GetDeploymentStatus": {"deployment_id": bad},
        "AdvanceStage": {
            "deployment_id": id,
            "expected_stage": bad,
            "reason": bad,
            "request_id": bad,
        },
        "Rollback": {
            "deployment_id": id,
            "redeploy_version": bad,
            "reason": bad,
            "request_id": bad,
        },
        "CancelDeployment": {"deployment_id": id, "reason": bad, "request_id": bad},
        "GetHistory": {
            "pipeline_name": bad,
            "page_token": bad,
            "reached_stage": bad,
            "completed_stage": bad,
        },
        "LockPipeline": {"name": bad, "reason": bad, "owner": bad, "request_id": bad},
        "UnlockPipeline": {"name": bad, "reason": bad, "request_id": bad},
        "GetPipelineState": {"name": bad},
        "ListEvents": {"pipeline_name": bad},
    }
    methods = pb.DESCRIPTOR.services_by_name["DeploymentPipeline"].methods
    assert set(requests) == {method.name for method in methods if method.input_type.fields}
    for method, fields in requests.items():
        refused = await invalid(client.call(method, **fields))
        broken = {v.field.partition("[")[0] for v in refused.details["BadRequest"].field_violations}
        assert broken == set(fields) - ({"deployment_id"} if fields.get("deployment_id") == id else set())
    assert stored(sql) == before


async def test_a_hundred_thousand_stages_are_refused(client: Client, sql: psycopg.Connection) -> None:
    before = stored(sql)
    refused = await invalid(client.call("CreatePipeline", name="many", stages=["s"] * 100_000))
    assert "not 100000" in refused.message
    assert stored(sql) == before


async def test_lists_without_a_natural_end_are_refused_as_a_whole(client: Client, pipeline: str) -> None:
    refused = await invalid(client.call("GetHistory", pipeline_name=pipeline, statuses=[77] * 100_000))
    assert refused.facts["fields"] == "statuses"
    paths = {"paths": ["nonsense"] * 50_000}
    refused = await invalid(client.call("UpdatePipeline", name=pipeline, update_mask=paths))
    assert refused.facts["fields"] == "update_mask"


async def test_a_message_beyond_1_mib_is_refused(client: Client, pipeline: str) -> None:
    tag_and_length = 4
    fitting = pb.CreatePipelineRequest(description="x" * (1024 * 1024 - tag_and_length)).SerializeToString()
    assert len(fitting) == 1024 * 1024
    refused = await refusal(client.send("CreatePipeline", fitting))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT, "read, and its fields are judged"
    for size in (1024 * 1024 + 1, 2 * 1024 * 1024):
        refused = await refusal(client.send("CreatePipeline", b"\x1a" + bytes(size - 1)))
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in refused.message
    await client.call("GetPipeline", name=pipeline)


# A text (field 1 or 2) with a lone continuation byte and with a surrogate; then what is no message at all.
NOT_UTF8 = [b"\x02\xff\xfe", b"\x03\xed\xa0\x80"]
NO_MESSAGE = [b"\x0a\xff", b"nonsense", b"\xff" * 50]


@pytest.mark.parametrize("data", [*NOT_UTF8, *NO_MESSAGE])
async def test_bytes_that_are_no_message_or_no_utf8_are_refused(client: Client, data: bytes) -> None:
    for method in pb.DESCRIPTOR.services_by_name["DeploymentPipeline"].methods_by_name:
        if method == "GetServerInfo" and data in NOT_UTF8:
            continue  # its request has no text
        tag = (b"\x12" if method == "ListPipelines" else b"\x0a") if data in NOT_UTF8 else b""
        refused = await refusal(client.send(method, tag + data))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.reason == "INVALID_FIELD"


async def test_texts_come_back_as_they_were_given(client: Client, new_name: Callable[[], str]) -> None:
    name = new_name()
    text = "Zeile eins\n\tzwei: ü € 🚀 'quoted' \"double\" \\ {} % $1 <b> 中文"
    labels = {"größe": "'; DROP TABLE dp_pipelines; --", "k": ""}
    created = await client.call("CreatePipeline", name=name, stages=["a"], description=text, labels=labels)
    assert (created.description, dict(created.labels)) == (text, labels)
    triggered = await trigger(client, name, "v 1 — 'β'", reason=text, labels=labels)
    assert (triggered.version, triggered.reason) == ("v 1 — 'β'", text)
    assert dict(triggered.labels) == labels


async def test_calls_cancelled_by_their_callers_do_not_hurt_the_next_ones(
    client: Client, pipeline: str
) -> None:
    for pause in range(60):
        call = asyncio.create_task(trigger(client, pipeline))
        await asyncio.sleep(pause / 20_000)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    async with asyncio.timeout(10):
        history = await client.call("GetHistory", pipeline_name=pipeline)
        for deployment in history.deployments:
            if not deployment.HasField("completed_at"):
                await cancel(client, deployment.id)
        await trigger(client, pipeline, "2")
