"""A client that writes down every call, and what is then asked of the history."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from deployment_pipeline.ids import deployment_id, redeployment_id
from support import audit, linearizability
from support.clients import Answer, Client, Refused
from support.contract_model import Op, Response
from support.linearizability import Call

STAGE_NAMES = ["build", "deploy"]
# Refusals of the server's own trouble: they say that nothing was changed.
TROUBLE = {"STORE_UNAVAILABLE", "OVERLOADED", "SHUTTING_DOWN"}
CLOCK_SLACK_SECONDS = 0.25


@dataclass
class Record:
    """One attempt of a call. No reason and no answer: nobody knows."""

    pipeline: str
    op: Op
    start: float
    version: str = ""
    end: float = 0.0
    answer: Answer | None = None
    refused: Refused | None = None
    reason: str = ""

    @property
    def unknown(self) -> bool:
        return self.answer is None and self.reason in ("", "OUTCOME_UNKNOWN")


@dataclass
class History:
    records: list[Record] = field(default_factory=list)

    async def call(
        self, client: Client, pipeline: str, op: Op, *, version: str = "", timeout: float = 8.0
    ) -> Record:
        record = Record(pipeline, op, time.time(), version)
        self.records.append(record)
        try:
            record.answer = await client.call(op.method, timeout=timeout, **_fields(pipeline, op, version))
        except Refused as refused:
            record.refused = refused
            record.reason = refused.reason if "ErrorInfo" in refused.details else ""
        except asyncio.CancelledError:
            record.end = time.time()
            raise
        record.end = time.time()
        return record

    def check(self, sql: psycopg.Connection, pipeline: str, t_c: float, *, redis_sound: bool) -> None:
        """All that must hold of one pipeline. Raises AssertionError."""
        audit.check(sql, pipeline)
        mine = [record for record in self.records if record.pipeline == pipeline]
        stored = _events(sql, pipeline)
        linearizability.check(list(_calls(mine, stored)))
        for record in mine:
            if record.answer is None and record.reason and not record.unknown:
                same = [r for r in mine if r.op.request_id == record.op.request_id and r is not record]
                changed = record.op.request_id and record.op.request_id in stored
                explained = any(r.answer is not None or r.unknown for r in same)
                assert not changed or explained, f"S6: {record.reason} changed something: {record.op}"
            if record.reason == "PIPELINE_BUSY" and not record.op.request_id:
                _check_refusal(sql, record, mine, t_c, redis_sound=redis_sound)


def _fields(pipeline: str, op: Op, version: str) -> dict[str, Any]:
    match op.method:
        case "TriggerDeployment":
            fields: dict[str, Any] = {"pipeline_name": pipeline, "version": version, "on_busy": op.on_busy}
        case "LockPipeline":
            fields = {"name": pipeline, "reason": "r", "owner": "ops"}
        case "UnlockPipeline":
            fields = {"name": pipeline, "start_next": op.start_next, "owner": "ops"}
        case "GetDeploymentStatus":
            return {"deployment_id": op.id}
        case _:
            fields = {"deployment_id": op.id}
    if op.expected_stage is not None:
        fields["expected_stage"] = STAGE_NAMES[op.expected_stage]
    if op.redeploy_id:
        fields["redeploy_version"] = "good"
    return fields | {"request_id": op.request_id}


def trigger_op(pipeline: str, request_id: str, on_busy: str) -> Op:
    return Op("TriggerDeployment", str(deployment_id(pipeline, request_id)), request_id, on_busy)


def rollback_op(id: str, request_id: str, *, redeploys: bool) -> Op:
    redeploy_id = str(redeployment_id(UUID(id))) if redeploys else ""
    return Op("Rollback", id, request_id, redeploy_id=redeploy_id)


def _events(sql: psycopg.Connection, pipeline: str) -> dict[str, tuple[int, UUID | None]]:
    """request_id -> the number of the event that was stored for it, and its deployment; of triggers without
    one, by version."""
    rows = sql.execute(
        "SELECT CASE WHEN starts_with(e.request_id, 'auto-') THEN 'version ' || d.version"
        " ELSE e.request_id END, e.event_no, d.id"
        " FROM dp_events e LEFT JOIN dp_deployments d ON d.id = e.deployment_id"
        " WHERE e.pipeline_name = %s AND e.request_id IS NOT NULL"
        " AND (NOT starts_with(e.request_id, 'auto-') OR e.type = 'TRIGGER')",
        [pipeline],
    ).fetchall()
    return {key: (number, id) for key, number, id in rows}


def _calls(records: Iterable[Record], stored: dict[str, tuple[int, UUID | None]]) -> Iterable[Call]:
    """What must be explained: what was answered by the contract, and what took effect unanswered."""
    for record in records:
        key = record.op.request_id or f"version {record.version}"
        number, id = stored.get(key, (None, None))
        # The id of a trigger without a request_id is the server's, and so is what it is recognised by.
        anonymous = record.op.method == "TriggerDeployment" and not record.op.id
        op = Op(record.op.method, str(id), key) if anonymous else record.op
        if record.answer is not None:
            if record.answer.replayed:
                # Perhaps the service's own repeat: the first one took effect, and things have gone on since.
                yield Call(op, record.start, record.end, None, number)
            yield Call(op, record.start, record.end, response_of(record.answer), number)
        elif record.unknown:
            if number is not None:
                yield Call(op, record.start, record.end or record.start, None, number)
        elif record.reason not in TROUBLE and record.op.request_id:
            yield Call(op, record.start, record.end, refusal_of(record))


def response_of(answer: Answer) -> Response:
    if not hasattr(answer.message, "stage_index"):
        return ("OK",)
    index = answer.stage_index if answer.HasField("stage_index") else -1
    return ("OK", answer.status_name, index)


def refusal_of(record: Record) -> Response:
    assert record.refused
    facts = record.refused.facts
    match record.reason:
        case "PIPELINE_BUSY":
            return (record.reason, facts["deployment_id"])
        case "DEPLOYMENT_ENDED":
            return (record.reason, facts["status"])
        case reason:
            return (reason,)


def _check_refusal(
    sql: psycopg.Connection, record: Record, mine: list[Record], t_c: float, *, redis_sound: bool
) -> None:
    assert record.refused
    id = record.refused.facts["deployment_id"]
    row = sql.execute(
        "SELECT extract(epoch FROM started_at)::float, extract(epoch FROM completed_at)::float"
        " FROM dp_deployments WHERE id = %s",
        [id],
    ).fetchone()
    assert row, f"S2: refused because of {id}, which never was"
    started, ended = row
    assert started <= record.end + CLOCK_SLACK_SECONDS, "S2: it had not started"
    alive = ended is None or ended >= record.start - t_c - CLOCK_SLACK_SECONDS
    assert alive, f"S2: it had ended {record.start - ended:.3f} s before"
    if redis_sound:
        for other in mine:
            over = other.answer is not None and other.op.id == id and _ends(other)
            assert not over or other.end >= record.start, (
                f"S3: refused because of {id}, acknowledged as ended"
            )


def _ends(record: Record) -> bool:
    assert record.answer is not None
    return (
        record.op.method in ("AdvanceStage", "CancelDeployment", "Rollback")
        and not record.answer.replayed
        and record.answer.HasField("completed_at")
    )
