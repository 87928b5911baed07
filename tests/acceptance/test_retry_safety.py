"""The same request, any number of times, changes things once."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest

from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import Client, Refused, TypedClient
from support.proxy import postgres_proxy
from support.steps import advance, cancel, refusal, status, trigger


def changes(sql: psycopg.Connection, pipeline: str) -> int:
    row = sql.execute("SELECT count(*) FROM dp_events WHERE pipeline_name = %s", [pipeline]).fetchone()
    assert row
    return int(row[0])


METHODS = [
    "CreatePipeline",
    "UpdatePipeline",
    "TriggerDeployment",
    "AdvanceStage",
    "Rollback",
    "CancelDeployment",
    "LockPipeline",
    "UnlockPipeline",
]


async def prepare(client: Client, method: str, name: str) -> dict[str, Any]:
    """The fields of a request that succeeds."""
    if method == "CreatePipeline":
        return {"name": name, "stages": ["a", "b", "c"]}
    await client.call("CreatePipeline", name=name, stages=["a", "b", "c"])
    match method:
        case "UpdatePipeline":
            return {"name": name, "stages": ["x"], "expected_revision": 1}
        case "LockPipeline":
            return {"name": name, "owner": "me", "reason": "because"}
        case "UnlockPipeline":
            await client.call("LockPipeline", name=name, reason="because", owner="me")
            return {"name": name, "owner": "me", "reason": "because"}
        case "TriggerDeployment":
            return {"pipeline_name": name, "version": "1", "labels": {"a": "1", "b": "2"}}
        case _:
            return {"deployment_id": (await trigger(client, name)).id, "reason": "because"}


@pytest.mark.parametrize("method", METHODS)
async def test_i1_a_repeat_changes_nothing_and_says_so(
    client: Client, sql: psycopg.Connection, new_name: Callable[[], str], method: str
) -> None:
    name = new_name()
    fields = await prepare(client, method, name)
    first = await client.call(method, **fields, request_id="r")
    assert not first.replayed
    made = changes(sql, name)
    for _ in range(3):
        again = await client.call(method, **fields, request_id="r")
        assert again.replayed
        assert again.message == first.message
    assert changes(sql, name) == made


@pytest.mark.parametrize("method", METHODS)
async def test_i1_repeats_at_once_change_things_once(
    client: Client, sql: psycopg.Connection, new_name: Callable[[], str], method: str
) -> None:
    name = new_name()
    fields = await prepare(client, method, name)
    before = changes(sql, name)
    answers = await asyncio.gather(*(client.call(method, **fields, request_id="r") for _ in range(8)))
    assert sum(not answer.replayed for answer in answers) == 1
    assert all(answer.message == answers[0].message for answer in answers)
    assert changes(sql, name) == before + 1


@pytest.mark.parametrize("method", METHODS)
async def test_i2_another_request_with_the_same_id_is_refused(
    client: Client, sql: psycopg.Connection, new_name: Callable[[], str], method: str
) -> None:
    name = new_name()
    fields = await prepare(client, method, name)
    await client.call(method, **fields, request_id="r")
    made = changes(sql, name)
    field, value = list(fields.items())[-1]
    other = {"stages": ["other"], "expected_revision": 2, "labels": {"a": "2"}, "reason": "another"}
    refused = await refusal(client.call(method, **{**fields, field: other[field]}, request_id="r"))
    assert refused.reason == "REQUEST_ID_REUSED", value
    assert changes(sql, name) == made


async def test_i2_a_request_id_belongs_to_one_call_of_the_pipeline(client: Client, pipeline: str) -> None:
    triggered = await trigger(client, pipeline, request_id="r")
    for method in ("AdvanceStage", "Rollback", "CancelDeployment"):
        refused = await refusal(client.call(method, deployment_id=triggered.id, request_id="r"))
        assert refused.reason == "REQUEST_ID_REUSED"


async def test_i1_a_trigger_is_recognised_after_its_deployment_has_ended(
    client: Client, pipeline: str
) -> None:
    id = (await trigger(client, pipeline, "1", request_id="r")).id
    await cancel(client, id)
    await trigger(client, pipeline, "2")
    again = await trigger(client, pipeline, "1", request_id="r")
    assert (again.id, again.status_name, again.replayed) == (id, "CANCELLED", True)


async def test_i1_an_advance_is_recognised_after_others(client: Client, pipeline: str) -> None:
    id = (await trigger(client, pipeline)).id
    await advance(client, id, request_id="r")
    await advance(client, id)
    again = await advance(client, id, request_id="r")
    assert (again.current_stage, again.replayed) == ("deploy", True)


async def test_i3_a_refusal_is_not_stored(client: Client, pipeline: str) -> None:
    id = (await trigger(client, pipeline)).id
    await refusal(trigger(client, pipeline, "2", request_id="r"))
    await cancel(client, id)
    assert not (await trigger(client, pipeline, "2", request_id="r")).replayed


async def test_s5_racing_advances_with_one_expected_stage_change_one_stage(
    client: Client, pipeline: str
) -> None:
    id = (await trigger(client, pipeline)).id
    results = await asyncio.gather(
        *(advance(client, id, expected_stage="build") for _ in range(20)),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, Refused)]
    assert len(refused) == 19
    assert {result.reason for result in refused} == {"STAGE_MISMATCH"}
    assert (await status(client, id)).current_stage == "test"


async def test_a_marked_retry_with_a_token_is_carried_out(client: Client, pipeline: str) -> None:
    id = (await trigger(client, pipeline)).id
    marked = [("x-envoy-attempt-count", "2")]
    advanced = await advance(client, id, expected_stage="build", metadata=marked)
    assert advanced.current_stage == "test"
    advanced = await advance(client, id, request_id="r", metadata=marked)
    assert advanced.current_stage == "deploy"
    first_try = [("x-envoy-attempt-count", "1")]
    advanced = await advance(client, id, metadata=first_try)
    assert advanced.status_name == "COMPLETED"


RETRYING = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


@pytest.mark.parametrize("expected_stage", ["", "build"])
async def test_grpcs_own_retry_of_an_advance_skips_no_stage(
    client: Client,
    pipeline: str,
    settings: Settings,
    expected_stage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    id = (await trigger(client, pipeline)).id
    # A call that finds Postgres away is refused as UNAVAILABLE soon.
    monkeypatch.setattr("deployment_pipeline.postgres.connections.MAX_WAIT_SECONDS", 0.2)
    options = [("grpc.service_config", json.dumps(RETRYING))]
    async with (
        postgres_proxy(settings.database_url) as (proxy, url),
        running(settings.model_copy(update={"database_url": url, "pool_size": 1})) as [served],
        grpc.aio.insecure_channel(served.address, options=options) as channel,
    ):
        there = TypedClient(channel)
        proxy.away = True
        await refusal(there.call("GetPipeline", name=pipeline, timeout=0.5))
        advancing = asyncio.create_task(advance(there, id, expected_stage=expected_stage))
        await asyncio.sleep(0.5)  # the first attempt has been refused
        proxy.away = False
        if expected_stage:
            assert (await advancing).current_stage == "test"
        else:
            assert (await refusal(advancing)).reason == "RETRY_WITHOUT_TOKEN"
    assert (await status(client, id)).current_stage == ("test" if expected_stage else "build")
