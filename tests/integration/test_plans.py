"""Every statement stays an index scan on a filled table: a call costs the same in year ten."""

import inspect
import itertools
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import psycopg.sql
import pytest
from psycopg.conninfo import make_conninfo

from deployment_pipeline.call import EVERYTHING, Names
from deployment_pipeline.commands import (
    AdvanceStage,
    CancelDeployment,
    Command,
    CreatePipeline,
    LockPipeline,
    Rollback,
    TriggerDeployment,
    UnlockPipeline,
    UpdatePipeline,
)
from deployment_pipeline.model import Deployment, HistoryFilter, OnBusy
from deployment_pipeline.postgres import Postgres, selects
from deployment_pipeline.postgres.migrate import migrate
from deployment_pipeline.postgres.statements import Statement
from deployment_pipeline.states import Status
from support.stores import Stores

DEPLOYMENTS = 60_000
PIPELINES = 300
BUSY = "p-7"  # with an active deployment and a long line


@pytest.fixture(scope="module")
def filled(stores: Stores) -> Iterator[str]:
    """A database of its own with many deployments, most of them completed, and their events."""
    with psycopg.connect(stores.database_url, autocommit=True) as outside:
        outside.execute("CREATE DATABASE dp_plans_test")
        try:
            url = make_conninfo(stores.database_url, dbname="dp_plans_test")
            migrate(url)
            with psycopg.connect(url, autocommit=True) as inside:
                fill(inside)
            yield url
        finally:
            outside.execute("DROP DATABASE dp_plans_test WITH (FORCE)")


def fill(sql: psycopg.Connection) -> None:
    sql.execute(
        """
        INSERT INTO dp_pipelines (name, stages, description, labels, max_pending, created_at, updated_at,
                                  last_seq, last_event_no)
        SELECT 'p-' || n, '{build,deploy}', '', '{}', 10000, now(), now(), 100000, 1000000
        FROM generate_series(1, %(pipelines)s) n;
        """,
        {"pipelines": PIPELINES},
    )
    sql.execute(
        """
        INSERT INTO dp_deployments (id, pipeline_name, seq, version, stages, stage_index, stage_entered_at,
                                    status, created_at, started_at, completed_at, reason, labels)
        SELECT gen_random_uuid(), 'p-' || 1 + n %% %(pipelines)s, 1 + n / %(pipelines)s, n::text,
               '{build,deploy}', 1, ARRAY[now(), now()], 'COMPLETED', now(), now(), now(), '', '{}'
        FROM generate_series(0, %(deployments)s - 1) n;
        """,
        {"pipelines": PIPELINES, "deployments": DEPLOYMENTS},
    )
    sql.execute(
        """
        INSERT INTO dp_deployments (id, pipeline_name, seq, version, stages, stage_index, stage_entered_at,
                                    status, created_at, started_at, reason, labels)
        SELECT gen_random_uuid(), %(busy)s, 1000 + n, 'waits', '{build,deploy}',
               CASE n WHEN 0 THEN 0 END, CASE n WHEN 0 THEN ARRAY[now()] ELSE '{}' END,
               CASE n WHEN 0 THEN 'IN_PROGRESS' ELSE 'PENDING' END, now(), CASE n WHEN 0 THEN now() END,
               '', '{}'
        FROM generate_series(0, 2000) n;
        """,
        {"busy": BUSY},
    )
    sql.execute(
        """
        INSERT INTO dp_events (pipeline_name, event_no, deployment_id, type, stage, from_status, to_status,
                               reason, request_id, request_digest, created_at)
        SELECT pipeline_name, (seq - 1) * 3 + n, id, type, stage, before, after, '',
               'r-' || seq || '-' || n, '', now()
        FROM dp_deployments CROSS JOIN (VALUES
            (1, 'TRIGGER', 'build', NULL, 'IN_PROGRESS'),
            (2, 'ADVANCE', 'build', 'IN_PROGRESS', 'IN_PROGRESS'),
            (3, 'COMPLETE', 'deploy', 'IN_PROGRESS', 'COMPLETED')) e (n, type, stage, before, after)
        WHERE status = 'COMPLETED'
        """
    )
    sql.execute("ANALYZE")


@pytest.fixture
async def postgres(filled: str) -> AsyncIterator[Postgres]:
    opened = Postgres(filled, 1, 64)
    await opened.open()
    yield opened
    await opened.close()


def sequential_scans(url: str) -> dict[str, int]:
    """How often each table was read from end to end, as far as the statistics know."""
    with psycopg.connect(url, autocommit=True) as connection:
        return dict(
            connection.execute(
                "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname <> 'dp_installation'"
            ).fetchall()
        )


async def active(postgres: Postgres) -> Deployment:
    state = await postgres.reads.state(BUSY, 1)
    assert state
    assert state.active
    return state.active


async def make(postgres: Postgres, asked: Command, outcome: str = "OK") -> Deployment | None:
    ids = {}
    if isinstance(asked, TriggerDeployment):
        ids = {"id": uuid.uuid4()}
    if isinstance(asked, Rollback):
        ids = {"redeploy_id": uuid.uuid4()}
    decision = await postgres.changes.make(asked, **ids)
    assert decision.outcome == outcome
    return decision.deployment


async def every_statement(postgres: Postgres) -> None:
    """Every read and every change, with outcomes that take it through all its branches."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    read = postgres.reads
    await read.installation()
    await postgres.probe()
    assert await read.pipeline(BUSY)
    assert (await read.pipelines(EVERYTHING, "p-1", 10)).items
    assert (await read.pipelines((("p-1", "p-1\x01"), ("p-5", "p-6")), "", 10)).items
    assert await read.pipeline_of((await active(postgres)).id) == BUSY
    assert await read.state(BUSY, 10)
    assert await read.deployment((await active(postgres)).id)
    for where in (
        HistoryFilter(),
        HistoryFilter(statuses=[Status.COMPLETED]),
        HistoryFilter(statuses=[Status.PENDING, Status.IN_PROGRESS, Status.CANCELLED]),
        HistoryFilter(reached_stage="deploy"),
        HistoryFilter(completed_stage="build"),
    ):
        for before in (2**63 - 1, 500):
            await read.history(BUSY, where, before, 10)
    assert await read.pipeline_events(BUSY, 5, 10)
    await read.deployment_events((await active(postgres)).id, 0, 10)

    await make(postgres, CreatePipeline(name=BUSY, stages=["x"]), "PIPELINE_EXISTS")
    await make(postgres, CreatePipeline(name=f"n-{uuid.uuid4().hex}", stages=["x"]))
    await make(postgres, UpdatePipeline(name=BUSY, update_mask=["description"], description="d"))
    await make(postgres, LockPipeline(name=BUSY, reason="r", owner="ops", expires_at=tomorrow))
    await make(postgres, UnlockPipeline(name=BUSY, owner="ops", start_next=True))
    for on_busy, outcome in (
        (OnBusy.REJECT, "PIPELINE_BUSY"),
        (OnBusy.QUEUE, "OK"),
        (OnBusy.SUPERSEDE, "OK"),
        (OnBusy.QUEUE, "OK"),
        (OnBusy.QUEUE, "OK"),
    ):
        await make(postgres, TriggerDeployment(pipeline_name=BUSY, version="1", on_busy=on_busy), outcome)
    await make(postgres, AdvanceStage(deployment_id=(await active(postgres)).id, expected_stage="build"))
    await make(postgres, AdvanceStage(deployment_id=(await active(postgres)).id))
    await make(postgres, CancelDeployment(deployment_id=(await active(postgres)).id))
    bad = await active(postgres)
    await make(postgres, Rollback(deployment_id=bad.id, redeploy_last_completed=True))
    await make(postgres, Rollback(deployment_id=(await active(postgres)).id))


async def test_no_statement_reads_a_table_from_end_to_end(postgres: Postgres, filled: str) -> None:
    before = sequential_scans(filled)
    await every_statement(postgres)
    await postgres.reads._statements.read(Statement("SELECT pg_stat_force_next_flush()", {}), {})
    await postgres.probe()
    assert sequential_scans(filled) == before


async def test_no_statement_is_planned_for_each_call(postgres: Postgres) -> None:
    await every_statement(postgres)
    plans = "SELECT sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements"
    [(generic, custom)] = await postgres.reads._statements.read(Statement(plans, {}), {}, alone=True)
    assert generic > 0
    assert custom == 0


def test_the_counter_would_notice(filled: str) -> None:
    before = sequential_scans(filled)
    with psycopg.connect(filled, autocommit=True) as connection:
        connection.execute("SELECT count(*) FROM dp_deployments WHERE version = '17'")
        connection.execute("SELECT pg_stat_force_next_flush()")
        connection.execute("SELECT 1")
    assert sequential_scans(filled)["dp_deployments"] > before["dp_deployments"]


READS = {
    f"{name}.{form}": text.decode()
    for name, value in inspect.getmembers(selects)
    if isinstance(value, Statement)
    for form, text in (("one", value.one), ("many", value.many))
}


def test_the_list_of_statements_is_complete() -> None:
    assert {"GET_DEPLOYMENT.many", "HISTORY.many", "FILTERED_HISTORY.one", "STATE.one"} <= set(READS)


@pytest.mark.parametrize("name", READS)
def test_each_plan_is_an_index_scan(filled: str, name: str) -> None:
    # Generic plans, as a prepared statement gets them: parameters are $1, $2 ...
    numbers = itertools.count(1)
    text = re.sub(r"%\(\w+\)s", lambda _: f"${next(numbers)}", READS[name])
    with psycopg.connect(filled, autocommit=True) as connection:
        # A pipeline's own stages are few: only the tables count.
        plan = "\n".join(
            line for (line,) in connection.execute(f"EXPLAIN (GENERIC_PLAN) {text}".encode()).fetchall()
        )
    if not name.startswith("INSTALLATION."):  # a table of one row
        assert "Seq Scan on dp_" not in plan, plan


def test_a_page_costs_the_same_for_many_ranges_of_names_as_for_all(filled: str) -> None:
    """Pages touched, with the plan that a prepared statement gets."""

    def touched(ranges: Names) -> int:
        values = {
            "lows": [low for low, _ in ranges],
            "highs": [high for _, high in ranges],
            "after": "p-2",
            "most": 4,
            "bytes": 1_000_000,
        }
        with psycopg.connect(filled, autocommit=True) as connection:
            connection.execute("SET plan_cache_mode = force_generic_plan")
            numbers = {name: f"${number}" for number, name in enumerate(values, 1)}
            text = selects.LIST_PIPELINES.one.decode() % {name: f"{numbers[name]}" for name in values}
            connection.execute(f"PREPARE list (text[], text[], text, integer, bigint) AS {text}".encode())
            plan = connection.execute(
                psycopg.sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE list ({})").format(
                    psycopg.sql.SQL(", ").join(map(psycopg.sql.Literal, values.values()))
                )
            ).fetchone()
        assert plan
        buffers = plan[0][0]["Plan"]
        return int(buffers["Shared Hit Blocks"] + buffers["Shared Read Blocks"])

    many = sorted((f"p-{number}", f"p-{number}\x01") for number in range(1, PIPELINES + 1))
    assert touched(many) < touched(EVERYTHING) + 50


async def test_promotion_costs_the_same_behind_any_line(postgres: Postgres, filled: str) -> None:
    """Pages touched by the commit that frees the slot, with a long line and with a short one."""

    async def touched(pipeline: str, waiting: int) -> int:
        await make(postgres, CreatePipeline(name=pipeline, stages=["only"], max_pending=10_000))
        first = None
        for _ in range(waiting):
            queued = TriggerDeployment(pipeline_name=pipeline, version="1", on_busy=OnBusy.QUEUE)
            first = first or await make(postgres, queued)
        assert first
        with psycopg.connect(filled, autocommit=True) as connection:
            plan = connection.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)"
                " SELECT * FROM dp_advance(p_deployment_id => %s, p_expected_stage => '', p_reason => '',"
                " p_request_id => %s, p_digest => NULL, p_wait_ms => 1000)",
                [first.id, f"auto-{uuid.uuid4()}"],
            ).fetchone()
        assert plan
        buffers = plan[0][0]["Plan"]
        return int(buffers["Shared Hit Blocks"] + buffers["Shared Read Blocks"])

    short, long = await touched("short-line", 3), await touched("long-line", 800)
    assert long < short * 1.5 + 20
