"""What is read is cut where it is read, and found by an index or after a bounded walk."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest

from deployment_pipeline import call
from deployment_pipeline.call import EVERYTHING
from deployment_pipeline.commands import (
    AdvanceStage,
    CancelDeployment,
    CreatePipeline,
    Rollback,
    TriggerDeployment,
)
from deployment_pipeline.fields import MAX_PAGE_BYTES
from deployment_pipeline.model import Deployment, HistoryFilter, OnBusy, Part
from deployment_pipeline.postgres import Postgres
from deployment_pipeline.postgres.selects import WALK
from deployment_pipeline.refusals import Overloaded
from deployment_pipeline.states import Status
from support.proxy import Proxy, postgres_proxy
from support.stores import Stores

NEWEST = 2**63 - 1
HEAVY = {f"k{n}": "v" * 1000 for n in range(64)}


@pytest.fixture
async def counted(stores: Stores) -> AsyncIterator[tuple[Postgres, Proxy]]:
    async with postgres_proxy(stores.database_url) as (proxy, url):
        postgres = Postgres(url, 2, 64)
        await postgres.open()
        yield postgres, proxy
        await postgres.close()


@pytest.fixture
def postgres(counted: tuple[Postgres, Proxy]) -> Postgres:
    return counted[0]


@pytest.fixture
async def pipeline(postgres: Postgres, new_name: Callable[[], str]) -> str:
    name = new_name()
    await postgres.changes.make(CreatePipeline(name=name, stages=["build", "deploy"], max_pending=1000))
    return name


async def trigger(postgres: Postgres, pipeline: str, version: str = "1") -> Deployment:
    asked = TriggerDeployment(pipeline_name=pipeline, version=version, on_busy=OnBusy.QUEUE)
    made = (await postgres.changes.make(asked, id=uuid.uuid4())).deployment
    assert made
    return made


async def complete(postgres: Postgres, pipeline: str, version: str) -> None:
    made = await trigger(postgres, pipeline, version)
    for _ in range(2):
        await postgres.changes.make(AdvanceStage(deployment_id=made.id))


def fill(sql: psycopg.Connection, pipeline: str, count: int, **columns: object) -> None:
    """Ended deployments, from the next seq on."""
    values = {
        "status": "ROLLED_BACK",
        "cause": "ROLLED_BACK",
        "stage_index": 0,
        "stage_entered_at": ["now"],
        "labels": psycopg.types.json.Jsonb({}),
        **columns,
    }
    names = ", ".join(values)
    sql.execute(
        f"INSERT INTO dp_deployments (id, pipeline_name, seq, version, stages, created_at, started_at,"
        f" completed_at, reason, {names}) SELECT gen_random_uuid(), name, last_seq + n, '1', stages, now(),"
        f" now(), now(), '', {', '.join(f'%({name})s' for name in values)}"
        " FROM dp_pipelines, generate_series(1, %(count)s) n WHERE name = %(pipeline)s".encode(),
        {**values, "count": count, "pipeline": pipeline},
    )
    sql.execute("UPDATE dp_pipelines SET last_seq = last_seq + %s WHERE name = %s", (count, pipeline))


async def pages(postgres: Postgres, pipeline: str, where: HistoryFilter, most: int) -> list[Part[Deployment]]:
    found: list[Part[Deployment]] = []
    before: str | int | None = NEWEST
    while before is not None:
        part = await postgres.reads.history(pipeline, where, int(before), most)
        assert part is not None
        found.append(part)
        before = part.next
    return found


async def test_o3_a_page_is_cut_where_it_is_read_and_nothing_is_missed(
    counted: tuple[Postgres, Proxy], pipeline: str, sql: psycopg.Connection
) -> None:
    postgres, proxy = counted
    fill(sql, pipeline, 120, labels=psycopg.types.json.Jsonb(HEAVY))
    for most in (100, 1000):
        found = await pages(postgres, pipeline, HistoryFilter(), most)
        assert [d.seq for page in found for d in page.items] == list(range(120, 0, -1))
        size = len(str(HEAVY))
        for page in found[:-1]:
            assert MAX_PAGE_BYTES - size < len(page.items) * size < MAX_PAGE_BYTES + 2 * size
    for _ in range(2):  # the first time, they are prepared
        proxy.reset()
        asked = (postgres.reads.history(pipeline, HistoryFilter(), NEWEST, 50) for _ in range(3))
        await asyncio.gather(*asked)
    assert proxy.count(b"S", b"Q") == 4, "together they are short, and each is read alone"


async def test_l4_a_long_read_waits_for_its_turn_until_its_callers_deadline(
    postgres: Postgres, pipeline: str
) -> None:
    async with postgres.reads._long:  # another long read is under way
        short = await postgres.reads.history(pipeline, HistoryFilter(), NEWEST, 100)
        assert short is not None
        call.begin(0.2)
        with pytest.raises(Overloaded):
            await postgres.reads.history(pipeline, HistoryFilter(), NEWEST, 1000)
    call.begin(None)
    assert await postgres.reads.history(pipeline, HistoryFilter(), NEWEST, 1000)


async def test_a_list_of_pipelines_is_cut_where_it_is_read(
    postgres: Postgres, sql: psycopg.Connection, new_name: Callable[[], str]
) -> None:
    names = sorted(new_name() for _ in range(60))
    for name in names:
        await postgres.changes.make(CreatePipeline(name=name, stages=["a"], labels=HEAVY))
    shown: list[str] = []
    after, number = names[0][:-1], 0
    while len(shown) < 60:
        part = await postgres.reads.pipelines(EVERYTHING, after, 1000)
        shown += [pipeline.name for pipeline in part.items if pipeline.name in names]
        number += 1
        if part.next is None:
            break
        after = str(part.next)
    assert shown == names
    assert number > 1
    sql.execute("DELETE FROM dp_events WHERE pipeline_name = ANY (%s)", (names,))
    sql.execute("DELETE FROM dp_pipelines WHERE name = ANY (%s)", (names,))


async def test_o4_places_in_line_are_the_same_wherever_they_are_read(
    postgres: Postgres, pipeline: str
) -> None:
    active = await trigger(postgres, pipeline)
    waiting = [await trigger(postgres, pipeline) for _ in range(7)]
    await postgres.changes.make(CancelDeployment(deployment_id=waiting.pop(3).id))
    expected = {d.id: n for n, d in enumerate(waiting, 1)}

    def places(deployments: object) -> dict[uuid.UUID, int]:
        assert isinstance(deployments, list)
        return {d.id: d.waiting.queue_position for d in deployments if d.waiting}

    assert places([await postgres.reads.deployment(id) for id in expected]) == expected
    for most in (2, 3, 100):
        for where in (HistoryFilter(), HistoryFilter((Status.PENDING, Status.CANCELLED))):
            found = await pages(postgres, pipeline, where, most)
            assert places([d for page in found for d in page.items]) == expected
    state = await postgres.reads.state(pipeline, 1000)
    assert state
    assert state.active
    assert (state.active.id, state.active.waiting) == (active.id, None)
    assert [d.id for d in state.queue] == list(expected)
    assert places(list(state.queue)) == expected
    assert {d.waiting.active_id for d in state.queue if d.waiting} == {active.id}
    assert state.pending_count == 6
    state = await postgres.reads.state(pipeline, 2)
    assert state
    assert (places(list(state.queue)), state.pending_count) == (dict(list(expected.items())[:2]), 6)


async def test_a_long_line_of_heavy_deployments_is_cut_and_counted(
    postgres: Postgres, pipeline: str, sql: psycopg.Connection
) -> None:
    await trigger(postgres, pipeline)
    sql.execute(
        "INSERT INTO dp_deployments"
        " (id, pipeline_name, seq, version, stages, status, created_at, reason, labels)"
        " SELECT gen_random_uuid(), name, last_seq + n, '1', stages, 'PENDING', now(), '', %s"
        " FROM dp_pipelines, generate_series(1, 80) n WHERE name = %s",
        (psycopg.types.json.Jsonb(HEAVY), pipeline),
    )
    state = await postgres.reads.state(pipeline, 1000)
    assert state
    assert state.pending_count == 80
    assert [d.seq for d in state.queue] == list(range(2, 2 + len(state.queue)))
    assert MAX_PAGE_BYTES * 0.9 < len(state.queue) * len(str(HEAVY)) < MAX_PAGE_BYTES * 1.1


async def test_a_list_of_ranges_shows_what_is_in_them_and_nothing_else(
    postgres: Postgres, new_name: Callable[[], str]
) -> None:
    root = new_name()
    names = [f"{root}-{name}" for name in ("a", "a-1", "a-2", "b", "b-1", "c", "ca")]
    for name in names:
        await postgres.changes.make(CreatePipeline(name=name, stages=["x"]))
    ranges = ((f"{root}-a", f"{root}-a\x01"), (f"{root}-b-", f"{root}-b."), (f"{root}-c", f"{root}-d"))
    shown, after = [], ""
    while True:
        part = await postgres.reads.pipelines(ranges, after, 2)
        shown += [pipeline.name for pipeline in part.items]
        if part.next is None:
            break
        after = str(part.next)
    assert shown == [f"{root}-{name}" for name in ("a", "b-1", "c", "ca")]
    assert (await postgres.reads.pipelines((), "", 10)).items == []


async def test_a_status_is_found_by_its_index_and_a_stage_by_a_bounded_walk(
    postgres: Postgres, pipeline: str, sql: psycopg.Connection
) -> None:
    await complete(postgres, pipeline, "good")
    fill(sql, pipeline, 2 * WALK + 5)
    [page] = await pages(postgres, pipeline, HistoryFilter((Status.COMPLETED,)), 10)
    assert [d.version for d in page.items] == ["good"]
    [page] = await pages(postgres, pipeline, HistoryFilter((Status.COMPLETED,), "deploy"), 10)
    assert [d.version for d in page.items] == ["good"]
    for where in (HistoryFilter(reached_stage="deploy"), HistoryFilter(completed_stage="build")):
        found = await pages(postgres, pipeline, where, 10)
        assert [len(page.items) for page in found] == [0, 0, 1], "two walks in vain, and the rest"
    found = await pages(postgres, pipeline, HistoryFilter((Status.ROLLED_BACK,), "build"), 1000)
    assert [d.seq for page in found for d in page.items] == list(range(2 * WALK + 6, 1, -1))


async def test_each_status_and_every_mixture_of_them_in_the_order_of_history(
    postgres: Postgres, pipeline: str
) -> None:
    await complete(postgres, pipeline, "1")
    for version in "23":
        made = await trigger(postgres, pipeline, version)
        await postgres.changes.make(CancelDeployment(deployment_id=made.id))
        made = await trigger(postgres, pipeline, version)
        await postgres.changes.make(Rollback(deployment_id=made.id))
    for version in "45":
        await trigger(postgres, pipeline, version)
    [everything] = await pages(postgres, pipeline, HistoryFilter(), 100)
    assert {d.status for d in everything.items} == set(Status) - {Status.UNSPECIFIED}
    for statuses in (
        *[(status,) for status in Status if status is not Status.UNSPECIFIED],
        (Status.COMPLETED, Status.CANCELLED, Status.CANCELLED),
        (Status.PENDING, Status.IN_PROGRESS, Status.ROLLED_BACK),
    ):
        for most in (1, 100):
            found = await pages(postgres, pipeline, HistoryFilter(statuses), most)
            assert [d.id for page in found for d in page.items] == [
                d.id for d in everything.items if d.status in statuses
            ]


async def test_the_last_known_good_version_is_the_one_completed_last(
    postgres: Postgres, pipeline: str, sql: psycopg.Connection
) -> None:
    """By the event log, not by seq, however often one version was completed since."""
    await complete(postgres, pipeline, "old")
    for _ in range(3):
        await complete(postgres, pipeline, "good")
    await complete(postgres, pipeline, "old")
    await complete(postgres, pipeline, "bad")
    bad = await trigger(postgres, pipeline, "bad")
    decision = await postgres.changes.make(
        Rollback(deployment_id=bad.id, redeploy_last_completed=True), redeploy_id=uuid.uuid4()
    )
    assert decision.started
    started = await postgres.reads.deployment(decision.started)
    assert started
    assert (started.version, started.rollback_of) == ("old", bad.id)
    known = sql.execute(
        "SELECT version FROM dp_versions WHERE pipeline_name = %s ORDER BY completed_no", (pipeline,)
    ).fetchall()
    assert known == [("good",), ("old",), ("bad",)]
