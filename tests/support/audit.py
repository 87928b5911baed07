"""Is what the tables hold lawful? The event log is replayed; ids of invariants stand beside each check."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from deployment_pipeline.states import TRANSITIONS, EventType, Status


@dataclass
class Replay:
    """A pipeline as its events say, one after the other."""

    statuses: dict[UUID, Status] = field(default_factory=dict)
    order: dict[UUID, int] = field(default_factory=dict)  # seq
    stage_index: dict[UUID, int] = field(default_factory=dict)
    locked: bool = False
    # A line whose lock has gone may wait for the next trigger, or for an unlock that resumes it.
    may_wait: bool = False

    def with_status(self, status: Status) -> list[UUID]:
        return [id for id, current in self.statuses.items() if current is status]

    def apply(self, row: dict[str, Any]) -> None:
        if row["type"] in ("LOCK", "UNLOCK"):
            self.locked = row["type"] == "LOCK"
            self.may_wait = True
            return
        id: UUID | None = row["deployment_id"]
        if id is None:
            return
        event, before = EventType(row["type"]), self.statuses.get(id)
        assert TRANSITIONS.get((before, event)) == row["to_status"], f"S4: {event} from {before}"
        assert before == row["from_status"], "S4: the log contradicts itself"
        if event is EventType.PROMOTE:
            waiting = self.with_status(Status.PENDING)
            assert id == min(waiting, key=self.order.__getitem__), "O4: the oldest starts first"
        if before is None:
            self.order[id] = row["seq"]
            assert row["seq"] == len(self.order), "O1: seq is 1, 2, 3 ..."
        if event in (EventType.TRIGGER, EventType.PROMOTE):
            self.stage_index[id] = 0
            self.may_wait = False
        if event in (EventType.ADVANCE, EventType.COMPLETE):
            assert row["stage"] == row["stages"][self.stage_index[id]], "S5: the stage that it was at"
            self.stage_index[id] += 1
        if event is EventType.COMPLETE:
            assert self.stage_index[id] == len(row["stages"]), "S5: none skipped"
        self.statuses[id] = Status(row["to_status"])
        assert len(self.with_status(Status.IN_PROGRESS)) <= 1, "S1"

    def commit(self) -> None:
        free = not self.with_status(Status.IN_PROGRESS)
        waits = bool(self.with_status(Status.PENDING))
        assert not (free and waits) or self.locked or self.may_wait, "L2: a free slot and a line"


def check(sql: psycopg.Connection, pipeline: str) -> Replay:
    """Raises AssertionError, with the log, if an invariant is broken. Only for locks that do not expire."""
    events = _rows(
        sql,
        "SELECT e.*, e.xmin::text AS commit, d.seq, d.stages FROM dp_events e"
        " LEFT JOIN dp_deployments d ON d.id = e.deployment_id"
        " WHERE e.pipeline_name = %s ORDER BY e.event_no",
        pipeline,
    )
    deployments = _rows(sql, "SELECT * FROM dp_deployments WHERE pipeline_name = %s", pipeline)
    replay = Replay()
    try:
        for number, row in enumerate(events, start=1):
            assert row["event_no"] == number, "O1: event_no is 1, 2, 3 ..."
            replay.apply(row)
            if number == len(events) or events[number]["commit"] != row["commit"]:
                replay.commit()
        assert replay.statuses == {d["id"]: d["status"] for d in deployments}, "D2: log and tables"
    except AssertionError as error:
        error.add_note("\n".join(_line(row) for row in events))
        raise
    return replay


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['event_no']:4} commit {row['commit']} seq {row['seq']} {row['type']}"
        f" {row['from_status']} -> {row['to_status']} at {row['stage']}"
    )


def _rows(sql: psycopg.Connection, query: str, pipeline: str) -> Sequence[dict[str, Any]]:
    with sql.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), [pipeline]).fetchall()
