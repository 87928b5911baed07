"""Postgres holds the same law as `states`, and refuses everything else by itself."""

import itertools
import re
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import errors

from deployment_pipeline.states import STATUSES, TRANSITIONS, EventType, Status


@pytest.fixture
def law(sql: psycopg.Connection, new_name: Callable[[], str]) -> Iterator[str]:
    """A pipeline inside a transaction that is rolled back."""
    name = new_name()
    with sql.transaction(force_rollback=True):
        sql.execute(
            "INSERT INTO dp_pipelines (name, stages, description, labels, max_pending, created_at,"
            " updated_at) VALUES (%s, '{a,b}', '', '{}', 1, now(), now())",
            [name],
        )
        yield name


def test_the_event_log_takes_the_laws_transitions_and_no_others(sql: psycopg.Connection, law: str) -> None:
    taken, refused_by = set(), set()
    statuses = [None, *STATUSES]
    for number, (start, event, end) in enumerate(itertools.product(statuses, EventType, statuses)):
        try:
            with sql.transaction():
                sql.execute(
                    "INSERT INTO dp_events (pipeline_name, event_no, deployment_id, type, from_status,"
                    " to_status, reason, created_at) VALUES (%s, %s, %s, %s, %s, %s, '', now())",
                    [law, number, uuid.uuid4(), event, start, end],
                )
        except errors.CheckViolation as violation:
            refused_by.add(violation.diag.constraint_name)
        else:
            taken.add((start, event, end))
    assert refused_by == {"dp_events_law"}
    assert taken == {(start, event, end) for (start, event), end in TRANSITIONS.items()}


def insert(sql: psycopg.Connection, pipeline: str, seq: int, **columns: object) -> None:
    values = {
        "id": uuid.uuid4(),
        "pipeline_name": pipeline,
        "seq": seq,
        "version": "1",
        "stages": ["a", "b"],
        "created_at": "now",
        "reason": "",
        "labels": "{}",
        **columns,
    }
    names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
    with sql.transaction():
        sql.execute(f"INSERT INTO dp_deployments ({names}) VALUES ({marks})".encode(), list(values.values()))


STARTED: dict[str, object] = {"started_at": "now", "stage_index": 0, "stage_entered_at": ["now"]}
LAWFUL: dict[Status, dict[str, object]] = {
    Status.PENDING: {},
    Status.IN_PROGRESS: STARTED,
    Status.COMPLETED: {**STARTED, "completed_at": "now"},
    Status.ROLLED_BACK: {**STARTED, "completed_at": "now", "cause": "ROLLED_BACK"},
    Status.CANCELLED: {"completed_at": "now", "cause": "CANCELLED"},
}


def test_the_tables_statuses_are_the_laws(sql: psycopg.Connection, law: str) -> None:
    assert set(LAWFUL) == set(STATUSES)
    for seq, (status, columns) in enumerate(LAWFUL.items()):
        insert(sql, law, seq, status=status, **columns)
    row = sql.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'dp_deployments_status'"
    ).fetchone()
    assert row
    assert set(re.findall("[A-Z_]{4,}", row[0])) - {"CHECK", "ARRAY"} == set(STATUSES)


@pytest.mark.parametrize(
    ("status", "columns"),
    [
        ("FAILED", {}),
        ("PENDING", STARTED),
        ("IN_PROGRESS", {}),
        ("IN_PROGRESS", {**STARTED, "completed_at": "now"}),
        ("IN_PROGRESS", {**STARTED, "stage_index": 2, "stage_entered_at": ["now"] * 3}),
        ("IN_PROGRESS", {**STARTED, "stage_index": 1}),
        ("IN_PROGRESS", {**STARTED, "cause": "CANCELLED"}),
        ("COMPLETED", STARTED),
        ("ROLLED_BACK", {**STARTED, "completed_at": "now"}),
        ("CANCELLED", {"completed_at": "now"}),
        ("CANCELLED", {"completed_at": "now", "cause": "ROLLED_BACK"}),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(
    sql: psycopg.Connection, law: str, status: str, columns: dict[str, object]
) -> None:
    with pytest.raises(errors.CheckViolation):
        insert(sql, law, 1, status=status, **columns)


def test_s1_a_second_deployment_in_progress_is_refused(sql: psycopg.Connection, law: str) -> None:
    insert(sql, law, 1, status="IN_PROGRESS", **STARTED)
    with pytest.raises(errors.UniqueViolation) as violation:
        insert(sql, law, 2, status="IN_PROGRESS", **STARTED)
    assert violation.value.diag.constraint_name == "dp_deployments_one_in_progress"
