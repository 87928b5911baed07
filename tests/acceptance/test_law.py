"""The whole product status x event, through the contract: the law's answer, or a refusal."""

import itertools
import uuid
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from deployment_pipeline.states import FINAL, TRANSITIONS, Event, Status
from support.clients import Client, Refused

CALLS = {
    Event.ADVANCE: ("AdvanceStage", 0),
    Event.COMPLETE: ("AdvanceStage", 2),
    Event.ROLLBACK: ("Rollback", 1),
    Event.CANCEL: ("CancelDeployment", 1),
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


@pytest.mark.parametrize(("status", "event"), list(itertools.product(Status, CALLS)))
async def test_s4_only_the_laws_transitions_happen(
    client: Client, pipeline: str, sql: psycopg.Connection, status: Status, event: Event
) -> None:
    method, stage_index = CALLS[event]
    id = place(sql, pipeline, status, stage_index)
    before = rows(sql, pipeline)
    allowed = TRANSITIONS.get((status, event))
    if allowed:
        answer = await client.call(method, deployment_id=str(id))
        assert answer.status_name == allowed
        last = rows(sql, pipeline)[-1]
        assert (last["type"], last["from_status"], last["to_status"]) == (event, status, allowed)
    else:
        with pytest.raises(Refused) as refused:
            await client.call(method, deployment_id=str(id))
        expected = "DEPLOYMENT_ENDED" if status in FINAL else "DEPLOYMENT_NOT_IN_PROGRESS"
        assert (refused.value.reason, refused.value.facts["status"]) == (expected, status)
        assert rows(sql, pipeline) == before
