"""The whole product status x event, through the contract: the law's answer, or a refusal."""

import itertools
import uuid
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from deployment_pipeline.model import OnBusy
from deployment_pipeline.states import FINAL, STATUSES, TRANSITIONS, EventType, Status
from support.clients import Client, Refused
from support.steps import refusal, trigger

CALLS = {
    EventType.ADVANCE: ("AdvanceStage", 0),
    EventType.COMPLETE: ("AdvanceStage", 2),
    EventType.ROLLBACK: ("Rollback", 1),
    EventType.CANCEL: ("CancelDeployment", 1),
}


def place(sql: psycopg.Connection, pipeline: str, status: Status, stage_index: int) -> uuid.UUID:
    """A deployment in that status, at that stage."""
    id = uuid.uuid4()
    started = status is not Status.PENDING
    sql.execute(
        "INSERT INTO dp_deployments (id, pipeline_name, seq, version, stages, status, created_at,"
        " started_at, stage_index, stage_entered_at, completed_at, cause, reason, labels)"
        " SELECT %(id)s, name, last_seq + 1, '1', stages, %(status)s, now(), %(started)s, %(index)s,"
        " %(entered)s, %(ended)s, %(cause)s, '', '{}' FROM dp_pipelines WHERE name = %(pipeline)s",
        {
            "id": id,
            "status": status,
            "pipeline": pipeline,
            "started": "now" if started else None,
            "index": stage_index if started else None,
            "entered": ["now"] * (stage_index + 1) if started else [],
            "ended": "now" if status in FINAL else None,
            "cause": status if status in FINAL - {Status.COMPLETED} else None,
        },
    )
    sql.execute("UPDATE dp_pipelines SET last_seq = last_seq + 1 WHERE name = %s", [pipeline])
    return id


def rows(sql: psycopg.Connection, pipeline: str) -> list[dict[str, Any]]:
    with sql.cursor(row_factory=dict_row) as cursor:
        deployments = cursor.execute(
            "SELECT * FROM dp_deployments WHERE pipeline_name = %s ORDER BY seq", [pipeline]
        ).fetchall()
        events = cursor.execute(
            "SELECT * FROM dp_events WHERE pipeline_name = %s ORDER BY event_no", [pipeline]
        ).fetchall()
    return [*deployments, *events]


@dataclass
class Around:
    """What is in the pipeline besides the deployment in question."""

    waiting: bool
    locked: bool


AROUND = [Around(waiting, locked) for waiting in (False, True) for locked in (False, True)]


@pytest.mark.parametrize("around", AROUND, ids=str)
@pytest.mark.parametrize(("status", "event"), list(itertools.product(STATUSES, CALLS)))
async def test_s4_l2_only_the_laws_transitions_happen_and_no_slot_stays_free(
    client: Client,
    pipeline: str,
    sql: psycopg.Connection,
    status: Status,
    event: EventType,
    around: Around,
) -> None:
    method, stage_index = CALLS[event]
    # A PENDING one waits for somebody; an ended one has left the slot to somebody if anybody waits.
    other = None
    if status is Status.PENDING or (status in FINAL and around.waiting):
        other = place(sql, pipeline, Status.IN_PROGRESS, 0)
    id = place(sql, pipeline, status, stage_index)
    waiting = place(sql, pipeline, Status.PENDING, 0) if around.waiting else None
    if around.locked:
        await client.call("LockPipeline", name=pipeline, reason="r")
    before = rows(sql, pipeline)
    allowed = TRANSITIONS.get((status, event))
    if allowed:
        answer = await client.call(method, deployment_id=str(id))
        assert answer.status_name == allowed
        [made] = [e for e in new_events(sql, pipeline, before) if e["deployment_id"] == id]
        assert (made["type"], made["from_status"], made["to_status"]) == (event, status, allowed)
    else:
        refused = await refusal(client.call(method, deployment_id=str(id)))
        expected = "DEPLOYMENT_ENDED" if status in FINAL else "DEPLOYMENT_NOT_IN_PROGRESS"
        assert (refused.reason, refused.facts["status"]) == (expected, status)
        assert rows(sql, pipeline) == before
    state = await client.call("GetPipelineState", name=pipeline)
    frees = status is Status.IN_PROGRESS and allowed in FINAL
    if frees and waiting and not around.locked:
        assert state.active.id == str(waiting), "promoted"
    elif frees:
        assert not state.HasField("active")
    elif other:
        assert state.active.id == str(other), "untouched"
    slot_free, somebody_waits = not state.HasField("active"), state.pending_count > 0
    assert not (slot_free and somebody_waits) or around.locked


def new_events(sql: psycopg.Connection, pipeline: str, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows(sql, pipeline) if "event_no" in row and row not in before]


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("on_busy", OnBusy)
async def test_s4_l2_a_trigger_in_every_state_of_the_pipeline(
    client: Client,
    pipeline: str,
    sql: psycopg.Connection,
    on_busy: OnBusy,
    busy: bool,
    waiting: bool,
    locked: bool,
) -> None:
    active = place(sql, pipeline, Status.IN_PROGRESS, 0) if busy else None
    # With a free slot this is a line that nobody resumed after a lock.
    line = place(sql, pipeline, Status.PENDING, 0) if waiting else None
    if locked:
        await client.call("LockPipeline", name=pipeline, reason="r")
    call = trigger(client, pipeline, "new", on_busy=on_busy)
    holder = active or (line if not locked else None)
    if holder and on_busy is OnBusy.REJECT:
        expected = "PIPELINE_BUSY"
    elif locked:
        expected = "PIPELINE_LOCKED"
    else:
        expected = "PENDING" if holder else "IN_PROGRESS"
    try:
        outcome = (await call).status_name
    except Refused as refused:
        outcome = refused.reason
    assert outcome == expected
    state = await client.call("GetPipelineState", name=pipeline)
    if holder:
        assert state.active.id == str(holder)
    assert not (state.pending_count and not state.HasField("active")) or locked
