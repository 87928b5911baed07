"""Every statement of the store stays an index scan on a filled table: a call costs the same in year ten."""

import inspect
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from deployment_pipeline.ids import RequestKey
from deployment_pipeline.model import Deployment, HistoryFilter, Judged
from deployment_pipeline.postgres import store as store_module
from deployment_pipeline.postgres.connections import Database
from deployment_pipeline.postgres.migrate import migrate
from deployment_pipeline.postgres.statements import Statement
from deployment_pipeline.postgres.store import Store
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
async def store(filled: str) -> AsyncIterator[Store]:
    database = Database(filled, 1, 64)
    await database.open()
    yield Store(database)
    await database.close()


def sequential_scans(url: str) -> dict[str, int]:
    """How often each table was read from end to end, as far as the statistics know."""
    with psycopg.connect(url, autocommit=True) as connection:
        return dict(
            connection.execute(
                "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname <> 'dp_installation'"
            ).fetchall()
        )


async def active(store: Store) -> Deployment:
    state = await store.pipeline_state(BUSY, 1)
    assert state
    assert state.active
    return state.active


async def judged(change: Any, outcome: str) -> Deployment | None:
    answer: Judged = await change
    assert answer.outcome == outcome
    return answer.deployment


async def every_statement(store: Store) -> None:
    """Each method of the store, with outcomes that take it through all its branches."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)

    def key() -> RequestKey:
        return RequestKey(f"auto-{uuid.uuid4()}", None)

    await store.page_token_key()
    await store.ping()
    assert await store.get_pipeline(BUSY)
    assert await store.list_pipelines("p-1", 10)
    assert await store.pipeline_state(BUSY, 10)
    assert await store.get_deployment((await active(store)).id)
    for where in (
        HistoryFilter(),
        HistoryFilter([Status.COMPLETED], "build", "deploy"),
        HistoryFilter([Status.PENDING]),
    ):
        for before in (2**63 - 1, 100):
            await store.history(BUSY, where, before, 10)
    assert await store.pipeline_events(BUSY, 5, 10)
    await store.deployment_events((await active(store)).id, 0, 10)

    await judged(store.create_pipeline(BUSY, ["x"], "", {}, 1, key()), "PIPELINE_EXISTS")
    await judged(store.create_pipeline(f"n-{uuid.uuid4().hex}", ["x"], "", {}, 1, key()), "OK")
    await judged(store.update_pipeline(BUSY, None, "d", None, None, None, key()), "OK")
    await judged(store.lock_pipeline(BUSY, "r", "", tomorrow, key()), "OK")
    await judged(store.unlock_pipeline(BUSY, "", True, key()), "OK")

    for on_busy, outcome in (
        ("REJECT", "PIPELINE_BUSY"),
        ("QUEUE", "OK"),
        ("SUPERSEDE", "OK"),
        ("QUEUE", "OK"),
        ("QUEUE", "OK"),
    ):
        await judged(store.trigger(uuid.uuid4(), BUSY, "1", on_busy, {}, "", key()), outcome)
    await judged(store.advance((await active(store)).id, "build", "", key()), "OK")
    await judged(store.advance((await active(store)).id, None, "", key()), "OK")
    await judged(store.cancel((await active(store)).id, "", key()), "OK")
    bad = await active(store)
    await judged(store.rollback(bad.id, uuid.uuid4(), None, "", key()), "OK")
    await judged(store.rollback((await active(store)).id, None, None, "", key()), "OK")


async def test_no_statement_reads_a_table_from_end_to_end(store: Store, filled: str) -> None:
    before = sequential_scans(filled)
    await every_statement(store)
    [(_,)] = await store._database.read(Statement("SELECT pg_stat_force_next_flush()"))
    await store.ping()
    assert sequential_scans(filled) == before


async def test_no_statement_is_planned_for_each_call(store: Store) -> None:
    await every_statement(store)
    plans = "SELECT sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements"
    [(generic, custom)] = await store._database.read(Statement(plans))
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
    for name, value in inspect.getmembers(store_module)
    if isinstance(value, Statement) and not value.waits
    for form, text in (("one", value.one), ("many", value.many))
    if text
}


def test_the_list_of_statements_is_complete() -> None:
    assert {"GET_DEPLOYMENT.many", "HISTORY.many", "STATE.one", "STAGE_STATES.one"} <= set(READS)


@pytest.mark.parametrize("name", READS)
def test_each_plan_is_an_index_scan(filled: str, name: str) -> None:
    # Generic plans, as a prepared statement gets them: parameters are $1, $2 ...
    numbers = iter(range(1, 99))
    text = re.sub("%s", lambda _: f"${next(numbers)}", READS[name])
    with psycopg.connect(filled, autocommit=True) as connection:
        # A pipeline's own stages are few: only the tables count.
        plan = "\n".join(
            line for (line,) in connection.execute(f"EXPLAIN (GENERIC_PLAN) {text}".encode()).fetchall()
        )
    if name != "PAGE_TOKEN_KEY.one":  # a table of one row
        assert "Seq Scan on dp_" not in plan, plan


async def test_promotion_costs_the_same_behind_any_line(store: Store, filled: str) -> None:
    """Pages touched by the commit that frees the slot, with a long line and with a short one."""

    async def touched(pipeline: str, waiting: int) -> int:
        await store.create_pipeline(pipeline, ["only"], "", {}, 10_000, RequestKey(f"auto-{pipeline}", None))
        first = None
        for _ in range(waiting):
            key = RequestKey(f"auto-{uuid.uuid4()}", None)
            triggered = await store.trigger(uuid.uuid4(), pipeline, "1", "QUEUE", {}, "", key)
            first = first or triggered.deployment
        assert first
        with psycopg.connect(filled, autocommit=True) as connection:
            plan = connection.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)"
                " SELECT * FROM dp_advance(%s, NULL, '', %s, NULL, 1000)",
                [first.id, f"auto-{uuid.uuid4()}"],
            ).fetchone()
        assert plan
        buffers = plan[0][0]["Plan"]
        return int(buffers["Shared Hit Blocks"] + buffers["Shared Read Blocks"])

    short, long = await touched("short-line", 3), await touched("long-line", 800)
    assert long < short * 1.5 + 20
