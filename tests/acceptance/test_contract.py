"""The contract's own list, over a real channel: with a generated client, and with one that knows only the
reflection service."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from support.clients import Answer, Client, Refused
from support.steps import advance, cancel, complete, outcome, refusal, rollback, status, trigger

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
    triggered = await trigger(client, pipeline, "1.0.0")
    assert (triggered.pipeline_name, triggered.version) == (pipeline, "1.0.0")
    assert (triggered.status_name, triggered.current_stage) == ("IN_PROGRESS", "build")
    assert triggered.HasField("started_at")
    assert not triggered.HasField("completed_at")
    assert (await status(client, triggered.id)).message == triggered.message


async def test_advance_stages(client: Client, pipeline: str) -> None:
    id = (await trigger(client, pipeline)).id
    for stage in STAGES[1:]:
        advanced = await advance(client, id)
        assert (advanced.status_name, advanced.current_stage) == ("IN_PROGRESS", stage)
    entered = [run.entered_at.ToNanoseconds() for run in advanced.stages]
    left = [run.left_at.ToNanoseconds() for run in advanced.stages[:-1]]
    assert entered == sorted(entered)
    assert left == entered[1:]
    assert not advanced.stages[-1].HasField("left_at")


async def test_advance_to_completion(client: Client, pipeline: str) -> None:
    id = (await trigger(client, pipeline)).id
    advanced = await advance(client, id, times=len(STAGES))
    assert (advanced.status_name, advanced.current_stage) == ("COMPLETED", "deploy")
    assert advanced.HasField("completed_at")
    assert not advanced.HasField("cause")
    assert (await refusal(advance(client, id))).reason == "DEPLOYMENT_ENDED"


async def test_rollback(client: Client, pipeline: str) -> None:
    id = (await trigger(client, pipeline)).id
    await advance(client, id)
    rolled_back = await rollback(client, id, reason="errors\nrise")
    assert (rolled_back.status_name, rolled_back.current_stage) == ("ROLLED_BACK", "test")
    assert rolled_back.cause.message == "errors\nrise"
    assert rolled_back.HasField("completed_at")


@pytest.mark.parametrize("end", ["COMPLETED", "CANCELLED", "ROLLED_BACK"])
async def test_rollback_not_in_progress(client: Client, pipeline: str, end: str) -> None:
    id = (await trigger(client, pipeline)).id
    match end:
        case "COMPLETED":
            ended = await complete(client, id, stages=len(STAGES))
        case "CANCELLED":
            ended = await cancel(client, id)
        case _:
            ended = await rollback(client, id)
    refused = await refusal(rollback(client, id))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.facts["status"] == end
    assert (await status(client, id)).message == ended.message


async def test_cancel_deployment(client: Client, pipeline: str) -> None:
    id = (await trigger(client, pipeline)).id
    cancelled = await cancel(client, id, reason="a typo")
    assert (cancelled.status_name, cancelled.cause.message) == ("CANCELLED", "a typo")


async def test_exclusive_execution(client: Client, pipeline: str) -> None:
    results = await asyncio.gather(*(outcome(trigger(client, pipeline, str(n))) for n in range(20)))
    [winner] = [result for result in results if isinstance(result, Answer)]
    losers = [result for result in results if isinstance(result, Refused)]
    assert {loser.reason for loser in losers} == {"PIPELINE_BUSY"}
    assert {loser.facts["deployment_id"] for loser in losers} == {winner.id}


async def test_history(client: Client, pipeline: str) -> None:
    ids = []
    for version in "123":
        triggered = await trigger(client, pipeline, version)
        ids.append(triggered.id)
        await cancel(client, triggered.id)
    history = await client.call("GetHistory", pipeline_name=pipeline)
    assert [deployment.id for deployment in history.deployments] == ids[::-1]
    assert [deployment.seq for deployment in history.deployments] == [3, 2, 1]
    assert history.next_page_token == ""


async def test_history_limit(client: Client, pipeline: str) -> None:
    for version in "12345":
        id = (await trigger(client, pipeline, version)).id
        await cancel(client, id)
    page = await client.call("GetHistory", pipeline_name=pipeline, limit=2)
    assert [d.version for d in page.deployments] == ["5", "4"]
    page = await client.call("GetHistory", pipeline_name=pipeline, limit=3, page_token=page.next_page_token)
    assert [d.version for d in page.deployments] == ["3", "2", "1"]
    assert page.next_page_token == ""


async def test_cancel_then_trigger(client: Client, pipeline: str) -> None:
    for version in "123":
        triggered = await trigger(client, pipeline, version)
        assert triggered.status_name == "IN_PROGRESS"
        await cancel(client, triggered.id)
