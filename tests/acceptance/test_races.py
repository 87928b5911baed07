"""Random schedules of racing calls on one pipeline, at two servers: whatever wins, the law holds.

Each schedule is a few rounds; the calls of a round are sent at once, half to each server. What they answer
depends on who wins; what must hold does not. DP_TEST_SCHEDULES says how many are tried.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployment_pipeline.states import Status
from support import audit
from support.clients import Client, Refused, TypedClient
from support.servers import server
from support.steps import advance, queue
from support.stores import Stores

SCHEDULES = int(os.environ.get("DP_TEST_SCHEDULES", "100"))

CALLS = [
    ("TriggerDeployment", {"version": "1", "on_busy": "REJECT"}),
    ("TriggerDeployment", {"version": "2", "on_busy": "QUEUE"}),
    ("TriggerDeployment", {"version": "3", "on_busy": "QUEUE"}),
    ("TriggerDeployment", {"version": "4", "on_busy": "SUPERSEDE"}),
    ("AdvanceStage", {}),
    ("AdvanceStage", {"expected_stage": "deploy"}),
    ("CancelDeployment", {}),
    ("Rollback", {}),
    ("Rollback", {"redeploy_version": "0"}),
    ("Rollback", {"redeploy_last_completed": True}),
    ("LockPipeline", {"reason": "r", "owner": "ops"}),
    ("UnlockPipeline", {"owner": "ops"}),
    ("UnlockPipeline", {"owner": "ops", "start_next": True}),
]
# A call, and which of the deployments known by then it is about (the newest is 0).
CALL = st.tuples(st.sampled_from(CALLS), st.integers(0, 2))
SCHEDULE = st.lists(st.lists(CALL, min_size=2, max_size=6), min_size=2, max_size=5)
EXPECTED = {
    *("PIPELINE_BUSY", "PIPELINE_LOCKED", "PIPELINE_NOT_LOCKED", "QUEUE_FULL", "STAGE_MISMATCH"),
    *("DEPLOYMENT_ENDED", "DEPLOYMENT_NOT_IN_PROGRESS", "NO_KNOWN_GOOD"),
}


@pytest.fixture(scope="module")
def addresses(stores: Stores) -> Iterator[list[str]]:
    quiet = {"DP_LOG_LEVEL": "error"}
    with server(stores, quiet) as one, server(stores, quiet) as other:
        yield [one.address, other.address]
        assert (one.stop(), other.stop()) == (0, 0)


async def call(client: Client, pipeline: str, known: list[str], what: Any) -> None:
    (method, fields), which = what
    target: dict[str, Any]
    if method == "TriggerDeployment":
        target = {"pipeline_name": pipeline}
    elif method.endswith("Pipeline"):
        target = {"name": pipeline}
    elif known:
        target = {"deployment_id": known[-1 - which % len(known)]}
    else:
        return
    try:
        answer = await client.call(method, **target, **fields)
    except Refused as refused:
        if refused.reason not in EXPECTED:
            raise
        return
    if method == "TriggerDeployment":
        known.append(answer.id)
    elif method == "Rollback" and answer.redeployed_by:
        known.append(answer.redeployed_by)


async def run(schedule: Any, clients: list[Client], pipeline: str) -> None:
    await clients[0].call("CreatePipeline", name=pipeline, stages=["build", "deploy"], max_pending=4)
    known: list[str] = []
    for calls in schedule:
        await asyncio.gather(*(call(clients[i % 2], pipeline, known, what) for i, what in enumerate(calls)))


async def drain(client: Client, pipeline: str) -> None:
    """Complete whatever is active until nothing is left."""
    try:
        await client.call("UnlockPipeline", name=pipeline, owner="ops", start_next=True)
    except Refused as refused:
        if refused.reason != "PIPELINE_NOT_LOCKED":
            raise
    state = await client.call("GetPipelineState", name=pipeline)
    while state.HasField("active"):
        await advance(client, state.active.id, times=2 - state.active.stage_index)
        state = await client.call("GetPipelineState", name=pipeline)
    assert state.pending_count == 0, "the line drains"


def test_s1_s4_s5_o1_o4_l2_hold_in_every_schedule(
    addresses: list[str], sql: psycopg.Connection, new_name: Callable[[], str]
) -> None:
    with asyncio.Runner() as runner:
        channels = [grpc.aio.insecure_channel(address) for address in addresses]
        clients: list[Client] = [TypedClient(channel) for channel in channels]

        @settings(
            max_examples=SCHEDULES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(SCHEDULE)
        def holds(schedule: Any) -> None:
            pipeline = new_name()
            runner.run(run(schedule, clients, pipeline))
            audit.check(sql, pipeline)
            runner.run(drain(clients[1], pipeline))
            replay = audit.check(sql, pipeline)
            assert not replay.with_status(Status.PENDING)

        holds()
        runner.run(asyncio.wait_for(asyncio.gather(*(channel.close() for channel in channels)), 5))


LIE = {
    "L2: a free slot and a line": (
        "UPDATE dp_deployments SET status = 'CANCELLED', cause = 'CANCELLED', completed_at = now()"
        " WHERE pipeline_name = %(p)s AND seq = 1",
        "CANCEL",
        1,
    ),
    "O4: the oldest starts first": ("", "PROMOTE", 3),
    "S1": ("", "PROMOTE", 2),
    "D2: log and tables": (
        "UPDATE dp_deployments SET status = 'CANCELLED', cause = 'CANCELLED', completed_at = now()"
        " WHERE pipeline_name = %(p)s AND seq = 2",
        "",
        0,
    ),
    "O1: event_no is 1, 2, 3": (
        "UPDATE dp_pipelines SET last_event_no = last_event_no + 1 WHERE name = %(p)s",
        "CANCEL",
        2,
    ),
}
STATUSES = {"CANCEL": {1: "IN_PROGRESS", 2: "PENDING"}, "PROMOTE": {2: "PENDING", 3: "PENDING"}}


@pytest.mark.parametrize("broken", LIE)
async def test_the_audit_notices(client: Client, pipeline: str, sql: psycopg.Connection, broken: str) -> None:
    for version in "123":
        await queue(client, pipeline, version)
    audit.check(sql, pipeline)
    lie, event, seq = LIE[broken]
    with sql.transaction(force_rollback=True):
        if lie:
            sql.execute(lie.encode(), {"p": pipeline})
        if event:
            sql.execute(
                "SELECT dp_append_event(p_pipeline => pipeline_name, p_type => %s, p_at => now(),"
                " p_actor => '', p_via => '', p_reason => '', p_deployment => id, p_stage => current_stage,"
                " p_from => %s, p_to => %s)"
                " FROM dp_deployments WHERE pipeline_name = %s AND seq = %s",
                [
                    event,
                    STATUSES[event][seq],
                    "CANCELLED" if event == "CANCEL" else "IN_PROGRESS",
                    pipeline,
                    seq,
                ],
            )
        with pytest.raises(AssertionError, match=broken):
            audit.check(sql, pipeline)
