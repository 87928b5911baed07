"""The contract's own list, over a real channel: with a generated client, and with one that knows only the
reflection service."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from support.clients import Client, Refused

STAGES = ["build", "test", "staging", "deploy"]


@pytest.fixture(params=["typed", "reflecting"])
def client(request: pytest.FixtureRequest) -> Client:
    chosen = request.getfixturevalue(request.param)
    assert isinstance(chosen, Client)
    return chosen


@pytest.fixture
async def pipeline(client: Client, new_name: Callable[[], str]) -> str:
    name = new_name()
    await client.call("CreatePipeline", name=name, stages=STAGES)
    return name


async def test_create_pipeline(client: Client, new_name: Callable[[], str]) -> None:
    name = new_name()
    created = await client.call("CreatePipeline", name=name, stages=STAGES)
    assert (created.name, list(created.stages), created.revision) == (name, STAGES, 1)
    assert created.message == (await client.call("GetPipeline", name=name)).message


async def test_trigger_deployment(client: Client, pipeline: str) -> None:
    triggered = await client.call("TriggerDeployment", pipeline_name=pipeline, version="1.0.0")
    assert (triggered.pipeline_name, triggered.version) == (pipeline, "1.0.0")
    assert (triggered.status_name, triggered.current_stage) == ("IN_PROGRESS", "build")
    assert triggered.HasField("started_at")
    assert not triggered.HasField("completed_at")
    status = await client.call("GetDeploymentStatus", deployment_id=triggered.id)
    assert status.message == triggered.message


async def test_advance_stages(client: Client, pipeline: str) -> None:
    id = (await client.call("TriggerDeployment", pipeline_name=pipeline, version="1")).id
    for stage in STAGES[1:]:
        advanced = await client.call("AdvanceStage", deployment_id=id)
        assert (advanced.status_name, advanced.current_stage) == ("IN_PROGRESS", stage)
    entered = [run.entered_at.ToNanoseconds() for run in advanced.stages]
    left = [run.left_at.ToNanoseconds() for run in advanced.stages[:-1]]
    assert entered == sorted(entered)
    assert left == entered[1:]
    assert not advanced.stages[-1].HasField("left_at")


async def test_advance_to_completion(client: Client, pipeline: str) -> None:
    id = (await client.call("TriggerDeployment", pipeline_name=pipeline, version="1")).id
    for _ in STAGES:
        advanced = await client.call("AdvanceStage", deployment_id=id)
    assert (advanced.status_name, advanced.current_stage) == ("COMPLETED", "deploy")
    assert advanced.HasField("completed_at")
    assert not advanced.HasField("cause")
    with pytest.raises(Refused) as refused:
        await client.call("AdvanceStage", deployment_id=id)
    assert refused.value.reason == "DEPLOYMENT_ENDED"


async def test_rollback(client: Client, pipeline: str) -> None:
    id = (await client.call("TriggerDeployment", pipeline_name=pipeline, version="1")).id
    await client.call("AdvanceStage", deployment_id=id)
    rolled_back = await client.call("Rollback", deployment_id=id, reason="errors\nrise")
    assert (rolled_back.status_name, rolled_back.current_stage) == ("ROLLED_BACK", "test")
    assert rolled_back.cause.message == "errors\nrise"
    assert rolled_back.HasField("completed_at")


@pytest.mark.parametrize("end", ["COMPLETED", "CANCELLED", "ROLLED_BACK"])
async def test_rollback_not_in_progress(client: Client, pipeline: str, end: str) -> None:
    id = (await client.call("TriggerDeployment", pipeline_name=pipeline, version="1")).id
    match end:
        case "COMPLETED":
            for _ in STAGES:
                ended = await client.call("AdvanceStage", deployment_id=id)
        case "CANCELLED":
            ended = await client.call("CancelDeployment", deployment_id=id)
        case _:
            ended = await client.call("Rollback", deployment_id=id)
    with pytest.raises(Refused) as refused:
        await client.call("Rollback", deployment_id=id)
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.facts["status"] == end
    status = await client.call("GetDeploymentStatus", deployment_id=id)
    assert status.message == ended.message


async def test_cancel_deployment(client: Client, pipeline: str) -> None:
    id = (await client.call("TriggerDeployment", pipeline_name=pipeline, version="1")).id
    cancelled = await client.call("CancelDeployment", deployment_id=id, reason="a typo")
    assert (cancelled.status_name, cancelled.cause.message) == ("CANCELLED", "a typo")


async def test_exclusive_execution(client: Client, pipeline: str) -> None:
    async def trigger(version: int) -> str | Refused:
        try:
            answer = await client.call("TriggerDeployment", pipeline_name=pipeline, version=str(version))
        except Refused as refused:
            return refused
        return str(answer.id)

    results = await asyncio.gather(*map(trigger, range(20)))
    [winner] = [result for result in results if isinstance(result, str)]
    losers = [result for result in results if isinstance(result, Refused)]
    assert {loser.reason for loser in losers} == {"PIPELINE_BUSY"}
    assert {loser.facts["deployment_id"] for loser in losers} == {winner}


async def test_history(client: Client, pipeline: str) -> None:
    ids = []
    for version in "123":
        triggered = await client.call("TriggerDeployment", pipeline_name=pipeline, version=version)
        ids.append(triggered.id)
        await client.call("CancelDeployment", deployment_id=triggered.id)
    history = await client.call("GetHistory", pipeline_name=pipeline)
    assert [deployment.id for deployment in history.deployments] == ids[::-1]
    assert [deployment.seq for deployment in history.deployments] == [3, 2, 1]
    assert history.next_page_token == ""


async def test_history_limit(client: Client, pipeline: str) -> None:
    for version in "12345":
        id = (await client.call("TriggerDeployment", pipeline_name=pipeline, version=version)).id
        await client.call("CancelDeployment", deployment_id=id)
    page = await client.call("GetHistory", pipeline_name=pipeline, limit=2)
    assert [d.version for d in page.deployments] == ["5", "4"]
    page = await client.call("GetHistory", pipeline_name=pipeline, limit=3, page_token=page.next_page_token)
    assert [d.version for d in page.deployments] == ["3", "2", "1"]
    assert page.next_page_token == ""


async def test_cancel_then_trigger(client: Client, pipeline: str) -> None:
    for version in "123":
        triggered = await client.call("TriggerDeployment", pipeline_name=pipeline, version=version)
        assert triggered.status_name == "IN_PROGRESS"
        await client.call("CancelDeployment", deployment_id=triggered.id)
