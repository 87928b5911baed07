"""Every refusal that a caller can provoke: code, reason, facts, details, and nothing of the driver."""

import asyncio
import gc
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deployment_pipeline.edge.calls import Calls
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import Answer, Client, Refused, TypedClient
from support.proxy import postgres_proxy
from support.steps import advance, cancel, refusal, status, trigger

# What would betray the inside: SQL, paths, the driver and the machine.
LEAKS = re.compile(
    r"psycopg|postgres|redis|lua|select |insert |update |dp_|\bsql|traceback|\.py\b"
    r"|/(?:usr|tmp|work|root|home)/|line \d|errno|socket|connection refused|exception|null",
    re.IGNORECASE,
)


async def clean_refusal(call: Awaitable[Answer]) -> Refused:
    """Awaits a call that must be refused, and checks that the refusal betrays nothing of the inside."""
    refused = await refusal(call)
    assert not LEAKS.search(refused.message), refused.message
    for value in refused.facts.values():
        assert not LEAKS.search(value)
    return refused


@pytest.fixture
async def active(client: Client, pipeline: str) -> Answer:
    return await trigger(client, pipeline, "1.0")


async def test_invalid_fields(client: Client) -> None:
    refused = await clean_refusal(
        client.call("CreatePipeline", name="-", stages=["a", "a"], description="\x1b", max_pending=-1)
    )
    assert (refused.code, refused.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    broken = [violation.field for violation in refused.details["BadRequest"].field_violations]
    assert broken == ["name", "stages[1]", "description", "max_pending"]
    assert all(field in refused.message for field in broken)


async def test_an_unknown_enum_value_is_an_invalid_field(client: Client, pipeline: str) -> None:
    assert (await clean_refusal(trigger(client, pipeline, on_busy=77))).facts["fields"] == "on_busy"
    history = client.call("GetHistory", pipeline_name=pipeline, statuses=["IN_PROGRESS", 77])
    assert (await clean_refusal(history)).facts["fields"] == "statuses[1]"


async def test_request_id_reused(client: Client, pipeline: str) -> None:
    await trigger(client, pipeline, request_id="r")
    refused = await clean_refusal(trigger(client, pipeline, "2", request_id="r"))
    assert (refused.code, refused.reason) == (StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert refused.facts == {"request_id": "r"}


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("GetPipeline", "name"),
        ("UpdatePipeline", "name"),
        ("TriggerDeployment", "pipeline_name"),
        ("GetHistory", "pipeline_name"),
    ],
)
async def test_pipeline_not_found(
    client: Client, new_name: Callable[[], str], method: str, field: str
) -> None:
    name = new_name()
    needed: dict[str, dict[str, Any]] = {
        "TriggerDeployment": {"version": "1"},
        "UpdatePipeline": {"stages": ["a"]},
    }
    more = needed.get(method, {})
    refused = await clean_refusal(client.call(method, **{field: name, **more}))
    assert (refused.code, refused.reason) == (StatusCode.NOT_FOUND, "PIPELINE_NOT_FOUND")
    assert refused.facts == {"pipeline": name}
    assert refused.details["ResourceInfo"].resource_name == name
    assert name in refused.message


@pytest.mark.parametrize("method", ["GetDeploymentStatus", "AdvanceStage", "Rollback", "CancelDeployment"])
async def test_deployment_not_found(client: Client, method: str) -> None:
    id = str(uuid.uuid4())
    refused = await clean_refusal(client.call(method, deployment_id=id))
    assert (refused.code, refused.reason) == (StatusCode.NOT_FOUND, "DEPLOYMENT_NOT_FOUND")
    assert refused.facts == {"deployment_id": id}
    assert refused.details["ResourceInfo"].resource_name == id


async def test_pipeline_exists(client: Client, pipeline: str) -> None:
    refused = await clean_refusal(client.call("CreatePipeline", name=pipeline, stages=["other"]))
    assert (refused.code, refused.reason) == (StatusCode.ALREADY_EXISTS, "PIPELINE_EXISTS")
    assert refused.facts["differs"] == "stages"
    assert "with other stages" in refused.message
    assert refused.details["ResourceInfo"].resource_name == pipeline


@pytest.mark.parametrize("served_by", ["postgres", "redis"])
async def test_pipeline_busy(client: Client, pipeline: str, active: Answer, served_by: str) -> None:
    more: dict[str, Any] = {"request_id": "asks postgres"} if served_by == "postgres" else {}
    refused = await clean_refusal(trigger(client, pipeline, "2", **more))
    assert (refused.code, refused.reason) == (StatusCode.FAILED_PRECONDITION, "PIPELINE_BUSY")
    assert refused.facts == {
        "pipeline": pipeline,
        "deployment_id": active.id,
        "version": "1.0",
        "stage": "build",
        "since": active.started_at.ToDatetime().isoformat(timespec="milliseconds") + "Z",
    }
    for fact in refused.facts.values():
        assert fact in refused.message
    [violation] = refused.details["PreconditionFailure"].violations
    assert (violation.type, violation.subject) == ("PIPELINE_BUSY", f"pipelines/{pipeline}")


async def test_deployment_ended(client: Client, active: Answer) -> None:
    await cancel(client, active.id)
    for method in ("AdvanceStage", "Rollback", "CancelDeployment"):
        refused = await clean_refusal(client.call(method, deployment_id=active.id))
        assert (refused.code, refused.reason) == (StatusCode.FAILED_PRECONDITION, "DEPLOYMENT_ENDED")
        assert refused.facts["status"] == "CANCELLED"
        assert refused.details["PreconditionFailure"].violations[0].subject.endswith(active.id)


async def test_stage_mismatch(client: Client, active: Answer) -> None:
    refused = await clean_refusal(advance(client, active.id, expected_stage="test"))
    assert (refused.code, refused.reason) == (StatusCode.ABORTED, "STAGE_MISMATCH")
    assert refused.facts["current_stage"] == "build"
    assert (await status(client, active.id)).message == active.message


async def test_revision_mismatch(client: Client, pipeline: str) -> None:
    refused = await clean_refusal(
        client.call("UpdatePipeline", name=pipeline, stages=["a"], expected_revision=7)
    )
    assert (refused.code, refused.reason) == (StatusCode.ABORTED, "REVISION_MISMATCH")
    assert refused.facts["current_revision"] == "1"


async def test_retry_without_token(client: Client, active: Answer) -> None:
    marked = [("x-envoy-attempt-count", "2")]
    refused = await clean_refusal(advance(client, active.id, metadata=marked))
    assert (refused.code, refused.reason) == (StatusCode.ABORTED, "RETRY_WITHOUT_TOKEN")
    assert (await status(client, active.id)).message == active.message


@pytest.fixture
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Postgres is given up soon."""
    monkeypatch.setattr("deployment_pipeline.postgres.connections.MAX_WAIT_SECONDS", 0.3)


@pytest.mark.usefixtures("_short_wait")
async def test_store_unavailable(settings: Settings, client: Client, pipeline: str) -> None:
    async with (
        postgres_proxy(settings.database_url) as (proxy, url),
        running(settings.model_copy(update={"database_url": url})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        there = TypedClient(channel)
        await there.call("GetPipeline", name=pipeline)
        proxy.away = True
        # The first call finds out that the connections are dead, which may have cost a change its answer.
        await refusal(there.call("GetPipeline", name=pipeline))
        calls: dict[str, dict[str, Any]] = {
            "GetPipeline": {"name": pipeline},
            "TriggerDeployment": {"pipeline_name": pipeline, "version": "1"},
        }
        for method, fields in calls.items():
            refused = await clean_refusal(there.call(method, **fields))
            assert (refused.code, refused.reason) == (StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert refused.details["RetryInfo"].retry_delay.seconds >= 1
        proxy.away = False
        triggered = await trigger(client, pipeline, "2")
        assert triggered.seq == 1, "the refused one stored nothing"


@pytest.mark.usefixtures("_short_wait")
async def test_outcome_unknown(settings: Settings, client: Client, pipeline: str) -> None:
    async with (
        postgres_proxy(settings.database_url) as (proxy, url),
        running(settings.model_copy(update={"database_url": url, "pool_size": 1})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        there = TypedClient(channel)
        # The statement is prepared by a first call, so that the answer that gets lost is the change's.
        first = await trigger(there, pipeline, request_id="first")
        await cancel(there, first.id)
        proxy.lose_answers = True
        refused = await clean_refusal(trigger(there, pipeline, request_id="r"))
        assert (refused.code, refused.reason) == (StatusCode.UNKNOWN, "OUTCOME_UNKNOWN")
        assert refused.facts["request_id"] == "r"
        assert "r" in refused.message
        stored, _ = (await client.call("GetHistory", pipeline_name=pipeline)).deployments
        assert refused.facts["subject"] == f"deployment {stored.id}"
        # What the refusal says to do leads to the answer.
        repeated = await trigger(client, pipeline, request_id="r")
        assert (repeated.id, repeated.replayed) == (stored.id, True)


async def test_overloaded(settings: Settings, pipeline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployment_pipeline.postgres.connections.MAX_WAITING", 1)
    async with (
        postgres_proxy(settings.database_url) as (proxy, url),
        running(settings.model_copy(update={"database_url": url, "pool_size": 1})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        there = TypedClient(channel)
        proxy.reset(free=0)
        fields: dict[str, Any] = {"name": pipeline, "stages": ["build", "test", "deploy"]}  # it is there
        calls = [asyncio.create_task(there.call("CreatePipeline", **fields)) for _ in range(5)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        refused = await clean_refusal(done.pop())
        assert (refused.code, refused.reason) == (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert refused.details["RetryInfo"].retry_delay.seconds >= 1
        check = health_pb2.HealthCheckRequest(service="readiness")
        healthy = await health_pb2_grpc.HealthStub(channel).Check(check)
        assert healthy.status == health_pb2.HealthCheckResponse.SERVING, "busy is not away"
        proxy.release()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(not isinstance(result, Refused) for result in results) == 2


async def test_shutting_down(settings: Settings, pipeline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Calls] = []
    original = Calls.__init__

    def remember(self: Calls, *args: Any) -> None:
        made.append(self)
        original(self, *args)

    monkeypatch.setattr(Calls, "__init__", remember)
    async with (
        running(settings) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        made[0].refuse_new_calls()
        refused = await clean_refusal(TypedClient(channel).call("GetPipeline", name=pipeline))
        assert (refused.code, refused.reason) == (StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert refused.details["RetryInfo"].retry_delay.seconds >= 1


async def test_a_bug_is_internal_with_an_incident(
    settings: Settings, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("SELECT secret FROM /usr/lib")

    async with (
        running(settings) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        monkeypatch.setattr("deployment_pipeline.edge.convert.pipeline", broken)
        refused = await clean_refusal(TypedClient(channel).call("GetPipeline", name=pipeline))
        assert (refused.code, refused.reason) == (StatusCode.INTERNAL, "INTERNAL")
        assert refused.facts["incident"] in refused.message


async def test_a_refusal_leaves_no_garbage(client: Client, pipeline: str, active: Answer) -> None:
    """Its frames in a cycle, for each refusal, cost more than all else of the collector's work."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await clean_refusal(trigger(client, pipeline, "2"))
        left = [found for found in gc.get_objects() if isinstance(found, grpc.aio.AbortError)]
        assert len(left) <= 1, "the last one's step may not be over"
    finally:
        gc.enable()
