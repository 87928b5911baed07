"""Rollback with redeployment: the last known good version, in one commit, in any state of the pipeline."""

from typing import Any

import psycopg
import pytest
from grpc import StatusCode

from support.clients import Answer, Client, Refused


async def trigger(client: Client, pipeline: str, version: str, **more: Any) -> Answer:
    return await client.call("TriggerDeployment", pipeline_name=pipeline, version=version, **more)


async def complete(client: Client, pipeline: str, version: str) -> None:
    id = (await trigger(client, pipeline, version)).id
    for _ in range(3):
        await client.call("AdvanceStage", deployment_id=id)


async def status(client: Client, id: str) -> Answer:
    return await client.call("GetDeploymentStatus", deployment_id=id)


async def test_the_last_completed_other_version_takes_the_place(
    client: Client, pipeline: str, sql: psycopg.Connection
) -> None:
    for version in ("1", "2", "3", "3"):
        await complete(client, pipeline, version)
    cancelled = await trigger(client, pipeline, "never completed")
    await client.call("CancelDeployment", deployment_id=cancelled.id)
    bad = await trigger(client, pipeline, "3")
    rolled_back = await client.call(
        "Rollback", deployment_id=bad.id, redeploy_last_completed=True, reason="on fire"
    )
    assert (rolled_back.id, rolled_back.status_name) == (bad.id, "ROLLED_BACK")
    redeployed = await status(client, rolled_back.redeployed_by)
    assert (redeployed.version, redeployed.status_name) == ("2", "IN_PROGRESS")
    assert (redeployed.current_stage, redeployed.rollback_of) == ("build", bad.id)
    assert redeployed.reason == "on fire"
    assert redeployed.seq == bad.seq + 1
    commits = sql.execute(
        "SELECT type, xmin::text FROM dp_events WHERE pipeline_name = %s ORDER BY event_no DESC LIMIT 2",
        [pipeline],
    ).fetchall()
    assert [type for type, _ in commits] == ["TRIGGER", "ROLLBACK"]
    assert commits[0][1] == commits[1][1]


async def test_a_named_version_takes_the_place(client: Client, pipeline: str) -> None:
    bad = await trigger(client, pipeline, "2")
    rolled_back = await client.call("Rollback", deployment_id=bad.id, redeploy_version="1.9")
    assert (await status(client, rolled_back.redeployed_by)).version == "1.9"


async def test_without_a_known_good_version_nothing_changes(client: Client, pipeline: str) -> None:
    await complete(client, pipeline, "1")
    bad = await trigger(client, pipeline, "1")
    with pytest.raises(Refused) as refused:
        await client.call("Rollback", deployment_id=bad.id, redeploy_last_completed=True, request_id="r")
    assert (refused.value.code, refused.value.reason) == (
        StatusCode.FAILED_PRECONDITION,
        "NO_KNOWN_GOOD",
    )
    assert refused.value.facts == {"pipeline": pipeline, "deployment_id": bad.id, "version": "1"}
    assert (await status(client, bad.id)).message == bad.message
    plain = await client.call("Rollback", deployment_id=bad.id)
    assert (plain.status_name, plain.redeployed_by) == ("ROLLED_BACK", "")


async def test_the_redeployment_comes_before_all_that_wait(client: Client, pipeline: str) -> None:
    bad = await trigger(client, pipeline, "2")
    waiting = await trigger(client, pipeline, "3", on_busy=2)
    rolled_back = await client.call("Rollback", deployment_id=bad.id, redeploy_version="1")
    assert (await status(client, rolled_back.redeployed_by)).status_name == "IN_PROGRESS"
    assert (await status(client, waiting.id)).queue_position == 1
    await client.call("CancelDeployment", deployment_id=rolled_back.redeployed_by)
    assert (await status(client, waiting.id)).status_name == "IN_PROGRESS"


async def test_a_lock_does_not_stop_it(client: Client, pipeline: str) -> None:
    bad = await trigger(client, pipeline, "2")
    await client.call("LockPipeline", name=pipeline, reason="an incident")
    rolled_back = await client.call("Rollback", deployment_id=bad.id, redeploy_version="1")
    assert (await status(client, rolled_back.redeployed_by)).status_name == "IN_PROGRESS"


async def test_the_redeployment_passes_the_pipelines_stages_of_now(client: Client, pipeline: str) -> None:
    bad = await trigger(client, pipeline, "2")
    await client.call("UpdatePipeline", name=pipeline, stages=["new"])
    rolled_back = await client.call("Rollback", deployment_id=bad.id, redeploy_version="1")
    assert (await status(client, rolled_back.redeployed_by)).current_stage == "new"


async def test_i1_a_repeat_redeploys_once(client: Client, pipeline: str) -> None:
    bad = await trigger(client, pipeline, "2")
    fields: dict[str, Any] = {"deployment_id": bad.id, "redeploy_version": "1", "request_id": "r"}
    first = await client.call("Rollback", **fields)
    again = await client.call("Rollback", **fields)
    assert (again.message, again.replayed) == (first.message, True)
    assert len((await client.call("GetHistory", pipeline_name=pipeline)).deployments) == 2
    for other in ({"redeploy_version": "0"}, {"redeploy_last_completed": True}):
        with pytest.raises(Refused) as refused:
            await client.call("Rollback", **{**fields, **other})
        assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_false_is_refused(client: Client, pipeline: str) -> None:
    bad = await trigger(client, pipeline, "2")
    with pytest.raises(Refused) as refused:
        await client.call("Rollback", deployment_id=bad.id, redeploy_last_completed=False)
    assert refused.value.facts["fields"] == "redeploy_last_completed"
    assert (await status(client, bad.id)).status_name == "IN_PROGRESS"
