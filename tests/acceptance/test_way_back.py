"""Rollback with redeployment: the last known good version, in one commit, in any state of the pipeline."""

from typing import Any

import psycopg
from grpc import StatusCode

from support.clients import Client
from support.steps import cancel, complete, queue, refusal, rollback, status, trigger


async def test_the_last_completed_other_version_takes_the_place(
    client: Client, pipeline: str, sql: psycopg.Connection
) -> None:
    for version in ("1", "2", "3", "3"):
        await complete(client, (await trigger(client, pipeline, version)).id)
    cancelled = await trigger(client, pipeline, "never completed")
    await cancel(client, cancelled.id)
    bad = await trigger(client, pipeline, "3")
    rolled_back = await rollback(client, bad.id, redeploy_last_completed=True, reason="on fire")
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
    rolled_back = await rollback(client, bad.id, redeploy_version="1.9")
    assert (await status(client, rolled_back.redeployed_by)).version == "1.9"


async def test_without_a_known_good_version_nothing_changes(client: Client, pipeline: str) -> None:
    await complete(client, (await trigger(client, pipeline, "1")).id)
    bad = await trigger(client, pipeline, "1")
    refused = await refusal(rollback(client, bad.id, redeploy_last_completed=True, request_id="r"))
    assert (refused.code, refused.reason) == (StatusCode.FAILED_PRECONDITION, "NO_KNOWN_GOOD")
    assert refused.facts == {"pipeline": pipeline, "deployment_id": bad.id, "version": "1"}
    assert (await status(client, bad.id)).message == bad.message
    plain = await rollback(client, bad.id)
    assert (plain.status_name, plain.redeployed_by) == ("ROLLED_BACK", "")


async def test_the_redeployment_comes_before_all_that_wait(client: Client, pipeline: str) -> None:
    bad = await trigger(client, pipeline, "2")
    waiting = await queue(client, pipeline, "3")
    rolled_back = await rollback(client, bad.id, redeploy_version="1")
    assert (await status(client, rolled_back.redeployed_by)).status_name == "IN_PROGRESS"
    assert (await status(client, waiting.id)).queue_position == 1
    await cancel(client, rolled_back.redeployed_by)
    assert (await status(client, waiting.id)).status_name == "IN_PROGRESS"


async def test_a_lock_does_not_stop_it(client: Client, pipeline: str) -> None:
    bad = await trigger(client, pipeline, "2")
    await client.call("LockPipeline", name=pipeline, reason="an incident")
    rolled_back = await rollback(client, bad.id, redeploy_version="1")
    assert (await status(client, rolled_back.redeployed_by)).status_name == "IN_PROGRESS"


async def test_the_redeployment_passes_through_the_pipelines_current_stages(
    client: Client, pipeline: str
) -> None:
    bad = await trigger(client, pipeline, "2")
    await client.call("UpdatePipeline", name=pipeline, stages=["new"])
    rolled_back = await rollback(client, bad.id, redeploy_version="1")
    assert (await status(client, rolled_back.redeployed_by)).current_stage == "new"


async def test_i1_a_repeat_redeploys_once(client: Client, pipeline: str) -> None:
    bad = await trigger(client, pipeline, "2")
    fields: dict[str, Any] = {"deployment_id": bad.id, "redeploy_version": "1", "request_id": "r"}
    first = await client.call("Rollback", **fields)
    again = await client.call("Rollback", **fields)
    assert (again.message, again.replayed) == (first.message, True)
    assert len((await client.call("GetHistory", pipeline_name=pipeline)).deployments) == 2
    for other in ({"redeploy_version": "0"}, {"redeploy_last_completed": True}):
        assert (await refusal(client.call("Rollback", **{**fields, **other}))).reason == "REQUEST_ID_REUSED"


async def test_redeploy_last_completed_false_is_refused(client: Client, pipeline: str) -> None:
    bad = await trigger(client, pipeline, "2")
    refused = await refusal(rollback(client, bad.id, redeploy_last_completed=False))
    assert refused.facts["fields"] == "redeploy_last_completed"
    assert (await status(client, bad.id)).status_name == "IN_PROGRESS"
