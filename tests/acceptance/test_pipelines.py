"""Pipelines: the calls beside the core, and history's filters."""

from collections.abc import Callable
from typing import Any

import pytest

from support.clients import Client
from support.steps import advance, cancel, queue, refusal, rollback, trigger


async def test_creating_the_same_pipeline_again_answers_with_it(client: Client, pipeline: str) -> None:
    again = await client.call("CreatePipeline", name=pipeline, stages=["build", "test", "deploy"])
    assert (again.revision, again.replayed) == (1, False)


async def test_an_update_changes_the_fields_of_its_mask(client: Client, pipeline: str) -> None:
    updated = await client.call(
        "UpdatePipeline",
        name=pipeline,
        description="shop",
        labels={"team": "a"},
        stages=["x"],
        update_mask={"paths": ["description", "labels"]},
    )
    assert (updated.description, updated.revision) == ("shop", 2)
    assert dict(updated.labels) == {"team": "a"}
    assert list(updated.stages) == ["build", "test", "deploy"]
    cleared = await client.call(
        "UpdatePipeline", name=pipeline, update_mask={"paths": ["labels"]}, expected_revision=2
    )
    assert (dict(cleared.labels), cleared.revision, cleared.description) == ({}, 3, "shop")
    assert cleared.updated_at.ToNanoseconds() > cleared.created_at.ToNanoseconds()


async def test_an_update_without_a_mask_changes_what_is_given(client: Client, pipeline: str) -> None:
    updated = await client.call("UpdatePipeline", name=pipeline, max_pending=0)
    assert (updated.max_pending, len(updated.stages)) == (0, 3)


@pytest.mark.parametrize("paths", [[], ["name"], ["description", "nonsense"]])
async def test_an_update_that_names_nothing_it_can_change_is_refused(
    client: Client, pipeline: str, paths: list[str]
) -> None:
    refused = await refusal(client.call("UpdatePipeline", name=pipeline, update_mask={"paths": paths}))
    assert refused.facts["fields"] == "update_mask"


async def test_every_broken_field_of_an_update_and_of_a_history_is_reported_at_once(client: Client) -> None:
    refused = await refusal(
        client.call("UpdatePipeline", name="-", stages=["a", "a"], update_mask={"paths": ["x", "stages"]})
    )
    assert refused.facts["fields"] == "name,update_mask,stages[1]"
    fields: dict[str, Any] = {"limit": -1, "statuses": [77], "page_token": "x"}
    refused = await refusal(client.call("GetHistory", pipeline_name="-", **fields))
    assert refused.facts["fields"] == "pipeline_name,limit,statuses[0],page_token"


async def test_an_update_of_everything_takes_the_default_for_what_is_absent(
    client: Client, pipeline: str
) -> None:
    await client.call("UpdatePipeline", name=pipeline, max_pending=7)
    updated = await client.call("UpdatePipeline", name=pipeline, stages=["a"], update_mask={"paths": ["*"]})
    assert (list(updated.stages), updated.max_pending) == (["a"], 100)


async def test_a_deployment_keeps_the_stages_it_started_with(client: Client, pipeline: str) -> None:
    id = (await trigger(client, pipeline)).id
    await client.call("UpdatePipeline", name=pipeline, stages=["deploy", "new"])
    stages = [(await advance(client, id)).current_stage for _ in range(2)]
    assert stages == ["test", "deploy"]
    assert (await advance(client, id)).status_name == "COMPLETED"
    following = await trigger(client, pipeline, "2")
    assert following.current_stage == "deploy"


async def test_pipelines_are_listed_by_name_page_by_page(client: Client, new_name: Callable[[], str]) -> None:
    names = sorted(new_name() for _ in range(5))
    for name in names:
        await client.call("CreatePipeline", name=name, stages=["a"])
    listed, token, pages = [], "", 0
    while pages == 0 or token:
        page = await client.call("ListPipelines", page_size=3, page_token=token)
        assert len(page.pipelines) <= 3
        listed += [pipeline.name for pipeline in page.pipelines]
        token, pages = page.next_page_token, pages + 1
    assert listed == sorted(listed)
    assert set(names) <= set(listed)
    assert len(set(listed)) == len(listed)


async def test_history_filters(client: Client, pipeline: str) -> None:
    for advances, end in ((0, cancel), (1, rollback), (2, cancel), (3, None)):
        id = (await trigger(client, pipeline, str(advances))).id
        for _ in range(advances):
            await advance(client, id)
        if end:
            await end(client, id)
    await trigger(client, pipeline, "active")

    async def versions(**filters: Any) -> list[str]:
        history = await client.call("GetHistory", pipeline_name=pipeline, **filters)
        return [deployment.version for deployment in history.deployments]

    assert await versions(statuses=["COMPLETED"]) == ["3"]
    assert await versions(statuses=["ROLLED_BACK", "IN_PROGRESS"]) == ["active", "1"]
    assert await versions(reached_stage="build") == ["active", "3", "2", "1", "0"]
    assert await versions(reached_stage="deploy") == ["3", "2"]
    assert await versions(completed_stage="test") == ["3", "2"]
    assert await versions(completed_stage="deploy") == ["3"]
    assert await versions(completed_stage="nonsense") == []
    assert await versions(statuses=["CANCELLED"], reached_stage="test") == ["2"]


async def test_a_page_of_large_deployments_fits_into_a_clients_default_limit(
    client: Client, new_name: Callable[[], str]
) -> None:
    name = new_name()
    labels = {f"{n:063}": "v" * 256 for n in range(64)}
    stages = [f"{n:063}" for n in range(100)]
    await client.call("CreatePipeline", name=name, stages=stages, max_pending=1000)
    for n in range(130):
        await queue(client, name, str(n), labels=labels, reason="r" * 4096)
    seen, token = [], None
    while token != "":
        page = await client.call("GetHistory", pipeline_name=name, limit=1000, page_token=token)
        assert page.message.ByteSize() < 4 * 1024 * 1024
        seen += [deployment.seq for deployment in page.deployments]
        token = page.next_page_token
    assert seen == list(range(130, 0, -1))
    state = await client.call("GetPipelineState", name=name)
    assert state.message.ByteSize() < 4 * 1024 * 1024
    assert (state.pending_count, state.queue[0].queue_position) == (129, 1)


async def test_a_page_token_belongs_to_its_filters(client: Client, pipeline: str) -> None:
    for version in "12":
        id = (await trigger(client, pipeline, version)).id
        await cancel(client, id)
    page = await client.call("GetHistory", pipeline_name=pipeline, limit=1)
    token = page.next_page_token
    for change in ({"statuses": ["CANCELLED"]}, {"page_token": token[:-1]}, {"page_token": token + "x"}):
        fields: dict[str, Any] = {"pipeline_name": pipeline, "page_token": token, **change}
        assert (await refusal(client.call("GetHistory", **fields))).facts["fields"] == "page_token"
