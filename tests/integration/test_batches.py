"""Many changes and reads in one statement: each has its own outcome, its own time and its own error."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import psycopg
import pytest

from deployment_pipeline import call
from deployment_pipeline.commands import AdvanceStage, CancelDeployment, CreatePipeline, TriggerDeployment
from deployment_pipeline.model import Decision, HistoryFilter, OnBusy
from deployment_pipeline.postgres import Postgres
from deployment_pipeline.postgres.reads import ROWS_TOGETHER
from deployment_pipeline.refusals import OutcomeUnknown, Overloaded
from deployment_pipeline.states import Status
from support.proxy import Proxy, postgres_proxy
from support.stores import Stores

MAX_BATCH = 64


class Replica:
    """What one replica asks, with a proxy before its Postgres."""

    def __init__(self, postgres: Postgres, proxy: Proxy) -> None:
        self.changes = postgres.changes
        self.reads = postgres.reads
        self.proxy = proxy

    def statements(self) -> int:
        """Since the proxy's reset."""
        return self.proxy.count(b"S", b"Q")

    async def trigger(self, pipeline: str, version: str = "1", request_id: str = "") -> Decision:
        id = uuid.uuid5(uuid.NAMESPACE_OID, pipeline + request_id) if request_id else uuid.uuid4()
        asked = TriggerDeployment(
            pipeline_name=pipeline, version=version, labels={"a": 'b"\\{}'}, request_id=request_id
        )
        return await self.changes.make(asked, id=id)

    async def advance(self, id: uuid.UUID) -> Decision:
        return await self.changes.make(AdvanceStage(deployment_id=id))


@pytest.fixture
async def replicas(stores: Stores) -> AsyncIterator[list[Replica]]:
    """The first of them with one connection."""
    made = []
    async with (
        postgres_proxy(stores.database_url) as (one, url),
        postgres_proxy(stores.database_url) as (
            other,
            other_url,
        ),
    ):
        for proxy, its_url, connections in ((one, url, 1), (other, other_url, 4)):
            postgres = Postgres(its_url, connections, MAX_BATCH)
            await postgres.open()
            made.append((Replica(postgres, proxy), postgres))
        yield [replica for replica, _ in made]
        for _, postgres in made:
            await postgres.close()


@pytest.fixture
def replica(replicas: list[Replica]) -> Replica:
    return replicas[0]


@pytest.fixture
async def pipelines(replica: Replica, new_name: Callable[[], str]) -> list[str]:
    """Fifty of them, and the first replica's statements are prepared."""
    names = [new_name() for _ in range(52)]
    for name in names:
        await replica.changes.make(CreatePipeline(name=name, stages=["build", "deploy"], max_pending=5))
    started = await together(*(replica.trigger(name) for name in names[50:]))
    ids = [decision.deployment.id for decision in started if decision.deployment]
    await together(*(replica.advance(id) for id in ids))
    await asyncio.gather(*(replica.reads.deployment(id) for id in ids))
    replica.proxy.reset()
    return names[:50]


async def together(*calls: Coroutine[Any, Any, Decision]) -> list[Decision]:
    return list(await asyncio.gather(*calls))


async def test_fifty_lives_take_a_few_statements(replica: Replica, pipelines: list[str]) -> None:
    started = await together(*(replica.trigger(name, f"v-{name}") for name in pipelines))
    ids = [decision.deployment.id for decision in started if decision.deployment]
    assert [decision.outcome for decision in started] == ["OK"] * 50
    assert [decision.deployment.version for decision in started if decision.deployment] == [
        f"v-{name}" for name in pipelines
    ]
    assert started[0].deployment
    assert started[0].deployment.labels == {"a": 'b"\\{}'}
    for _ in range(2):
        advanced = await together(*(replica.advance(id) for id in ids))
        assert [decision.deployment.id for decision in advanced if decision.deployment] == ids
    found = await asyncio.gather(*(replica.reads.deployment(id) for id in ids))
    assert [deployment.status for deployment in found if deployment] == ["COMPLETED"] * 50
    assert replica.statements() <= 4


async def test_each_has_its_own_outcome(
    replica: Replica, pipelines: list[str], new_name: Callable[[], str]
) -> None:
    busy, free, replayed, reused = pipelines[:4]
    await replica.trigger(busy)
    first = await replica.trigger(replayed, request_id="r")
    await replica.trigger(reused, request_id="r")
    replica.proxy.reset()
    decision = await together(
        replica.trigger(busy),
        replica.trigger(free),
        replica.trigger(free),
        replica.trigger(new_name()),
        replica.trigger(replayed, request_id="r"),
        replica.trigger(reused, "other", request_id="r"),
    )
    assert [answer.outcome for answer in decision] == [
        "PIPELINE_BUSY",
        "OK",
        "PIPELINE_BUSY",
        "PIPELINE_NOT_FOUND",
        "REPLAYED",
        "REQUEST_ID_REUSED",
    ]
    assert decision[4].deployment
    assert first.deployment
    assert decision[4].deployment.id == first.deployment.id
    assert replica.statements() == 1


async def test_each_has_its_own_page_of_history(
    replica: Replica, pipelines: list[str], new_name: Callable[[], str]
) -> None:
    """Newest first, with filters and without; of a pipeline without deployments, and of none."""
    busy, idle, *_ = pipelines
    for version in ("1", "2", "3"):
        started = (await replica.trigger(busy, version)).deployment
        assert started
        await replica.changes.make(CancelDeployment(deployment_id=started.id))
    await replica.trigger(busy, "4")
    newest = 2**63 - 1
    asked = (
        (busy, HistoryFilter(), newest, 2),
        (idle, HistoryFilter(), newest, 2),
        (busy, HistoryFilter((Status.CANCELLED,), "build"), newest, 10),
        (new_name(), HistoryFilter(), newest, 2),
        (busy, HistoryFilter(), 3, 10),
        (busy, HistoryFilter(completed_stage="build"), newest, 10),
    )
    pages = await asyncio.gather(*(replica.reads.history(*page) for page in asked))
    assert [page and [deployment.version for deployment in page.items] for page in pages] == [
        ["4", "3"],
        [],
        ["3", "2", "1"],
        None,
        ["2", "1"],
        [],
    ]
    replica.proxy.reset()
    assert pages == await asyncio.gather(*(replica.reads.history(*page) for page in asked))
    assert replica.statements() == 3, "one for those without a filter, and one for each with one"
    assert pages == [await replica.reads.history(*page) for page in asked]


async def test_long_pages_of_history_are_read_alone(replica: Replica, pipelines: list[str]) -> None:
    async def read(most: int) -> int:
        replica.proxy.reset()
        await asyncio.gather(
            *(replica.reads.history(name, HistoryFilter(), 2**63 - 1, most) for name in pipelines[:3])
        )
        return replica.statements()

    for most in (ROWS_TOGETHER, ROWS_TOGETHER + 1):
        await read(most)  # they are prepared by now
    assert await read(ROWS_TOGETHER) == 1
    assert await read(ROWS_TOGETHER + 1) == 3


async def test_what_must_fail_fails_alone(replica: Replica, pipelines: list[str]) -> None:
    bad, *good = pipelines
    answers = await asyncio.gather(
        *(replica.trigger(name) for name in good),
        replica.trigger(bad, version="\0"),  # Postgres has no such character
        return_exceptions=True,
    )
    assert isinstance(answers.pop(), psycopg.DataError)
    assert [answer.outcome for answer in answers if isinstance(answer, Decision)] == ["OK"] * len(good)


async def test_who_must_wait_for_a_lock_waits_alone_and_no_longer_than_its_caller(
    replicas: list[Replica], pipelines: list[str], sql: psycopg.Connection
) -> None:
    replica = replicas[1]
    held, *free = pipelines

    async def impatient(name: str) -> Decision:
        call.begin(0.5)
        return await replica.trigger(name)

    began = time.monotonic()
    with sql.transaction():
        sql.execute("SELECT FROM dp_pipelines WHERE name = %s FOR UPDATE", (held,))
        stuck = asyncio.create_task(impatient(held))
        others = await asyncio.gather(*(asyncio.create_task(impatient(name)) for name in free))
        assert [decision.outcome for decision in others] == ["OK"] * len(free)
        assert not stuck.done()
        with pytest.raises(Overloaded):
            await stuck
    assert 0.4 < time.monotonic() - began < 5
    assert (await replica.trigger(held)).outcome == "OK"


async def test_what_is_late_before_it_is_sent_is_not_made(replica: Replica, pipelines: list[str]) -> None:
    async def late(name: str) -> Decision:
        call.begin(0)
        return await replica.trigger(name)

    calls = [asyncio.create_task(late(pipelines[0]))]
    calls += [asyncio.create_task(replica.trigger(name)) for name in pipelines[1:]]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[0], Exception)
    assert {answer.outcome for answer in answers[1:] if isinstance(answer, Decision)} == {"OK"}
    assert (await replica.trigger(pipelines[0])).outcome == "OK", "nothing is in the way"


async def test_a_batch_whose_answer_is_lost_is_repeated_and_found(
    replica: Replica, pipelines: list[str], sql: psycopg.Connection
) -> None:
    few = pipelines[:5]  # the rows of many are on their way before the commit, and then nothing is made
    replica.proxy.lose_one_answer = True
    answers = await asyncio.gather(
        *(replica.trigger(name, request_id="once") for name in few), return_exceptions=True
    )
    made = [answer.outcome for answer in answers if isinstance(answer, Decision)]
    unknown = [answer for answer in answers if isinstance(answer, OutcomeUnknown)]
    assert len(made) + len(unknown) == 5
    assert "REPLAYED" in made, "they were made by the batch"
    row = sql.execute(
        "SELECT count(*), count(DISTINCT pipeline_name) FROM dp_deployments WHERE pipeline_name = ANY (%s)",
        (few,),
    ).fetchone()
    assert row == (5, 5)


async def test_batches_of_two_replicas_do_not_deadlock(
    replicas: list[Replica], pipelines: list[str], sql: psycopg.Connection
) -> None:
    def deadlocks() -> int:
        sql.execute("SELECT pg_stat_force_next_flush()")
        row = sql.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        assert row
        return int(row[0])

    before = deadlocks()
    started = await together(*(replicas[0].trigger(name) for name in pipelines))
    ids = [decision.deployment.id for decision in started if decision.deployment]
    one, other = replicas
    outcomes = [
        decision.outcome
        for decision in await together(
            *(one.advance(id) for id in ids), *(other.advance(id) for id in reversed(ids))
        )
    ]
    assert outcomes == ["OK"] * 100, "one moved it on, and the other completed it"
    assert deadlocks() == before


async def test_what_ends_a_whole_queue_is_made_alone(replica: Replica, pipelines: list[str]) -> None:
    """Its rows stay locked until its commit: no stranger shall share that."""

    async def statements(on_busy: OnBusy) -> int:
        replica.proxy.reset()
        asked = (
            TriggerDeployment(pipeline_name=name, version="1", on_busy=on_busy) for name in pipelines[:5]
        )
        await together(*(replica.changes.make(command, id=uuid.uuid4()) for command in asked))
        return replica.statements()

    for on_busy in (OnBusy.QUEUE, OnBusy.SUPERSEDE):
        await statements(on_busy)  # it is prepared now
    assert await statements(OnBusy.QUEUE) == 1
    assert await statements(OnBusy.SUPERSEDE) == 5
