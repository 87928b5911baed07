"""Many at once: a herd on one pipeline, and callers that leave."""

import asyncio
import random
import re
import time
from collections import Counter
from typing import Any

import grpc
import psycopg
import pytest

from support import audit
from support.clients import Answer, Refused, TypedClient
from support.servers import server
from support.steps import outcome, trigger
from support.stores import Stores, next_transaction_id
from support.table import NOTES

HERD = 1000
MAX_TRANSACTIONS = 10
MAX_DEAD_ROWS = 10


def dead_rows(sql: psycopg.Connection) -> int:
    """What a vacuum finds to remove; it is then gone."""
    removed: list[int] = []

    def notice(said: psycopg.errors.Diagnostic) -> None:
        removed.extend(map(int, re.findall(r"tuples: (\d+) removed", said.message_primary or "")))

    sql.add_notice_handler(notice)
    sql.execute("VACUUM (VERBOSE) dp_pipelines, dp_deployments, dp_events")
    assert removed
    return sum(removed)


@pytest.mark.parametrize("request_ids", [False, True], ids=["without request_ids", "with request_ids"])
async def test_a_herd_of_1000_has_one_winner_and_costs_a_handful(
    stores: Stores, pipeline: str, sql: psycopg.Connection, request_ids: bool
) -> None:
    quiet = {"DP_LOG_LEVEL": "error"}
    with server(stores, quiet) as one, server(stores, quiet) as other:
        async with (
            grpc.aio.insecure_channel(one.address) as channel,
            grpc.aio.insecure_channel(other.address) as other_channel,
        ):
            clients = [TypedClient(channel), TypedClient(other_channel)]
            for client in clients:
                await client.call("GetPipeline", name=pipeline)
            dead_rows(sql)
            before, start = next_transaction_id(sql), time.perf_counter()
            results = await asyncio.gather(
                *(
                    trigger(clients[n % 2], pipeline, str(n), request_id=f"r{n}" if request_ids else "")
                    for n in range(HERD)
                ),
                return_exceptions=True,
            )
            seconds = time.perf_counter() - start
            transactions = next_transaction_id(sql) - before
        dead = dead_rows(sql)
        assert (one.stop(), other.stop()) == (0, 0)
    [winner] = [result for result in results if isinstance(result, Answer)]
    reasons = Counter(result.reason for result in results if isinstance(result, Refused))
    assert reasons == {"PIPELINE_BUSY": HERD - 1}
    facts = {result.facts["deployment_id"] for result in results if isinstance(result, Refused)}
    assert facts == {winner.id}
    assert transactions <= MAX_TRANSACTIONS
    assert dead <= MAX_DEAD_ROWS
    audit.check(sql, pipeline)
    kind = "with" if request_ids else "without"
    NOTES.append(
        f"herd of {HERD} {kind} request_ids at two replicas, its client on the same two cores: 1 OK,"
        f" {seconds:.2f} s, {transactions} transaction ids, {dead} dead rows"
    )


@pytest.mark.parametrize("calls", [500, pytest.param(10_000, marks=pytest.mark.proof)])
async def test_callers_that_leave_at_any_moment_leave_nothing_behind(
    stores: Stores, pipeline: str, sql: psycopg.Connection, calls: int
) -> None:
    rng = random.Random(calls)  # noqa: S311  # to be the same next time
    quiet = {"DP_LOG_LEVEL": "error"}

    def connections() -> int:
        row = sql.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE starts_with(application_name, 'deployment-pipeline/')"
        ).fetchone()
        assert row
        return int(row[0])

    with server(stores, quiet) as running:
        async with grpc.aio.insecure_channel(running.address) as channel:
            client = TypedClient(channel)
            before = connections()
            left = 0

            choices: list[tuple[str, dict[str, Any]]] = [
                ("TriggerDeployment", {"pipeline_name": pipeline, "version": "1", "on_busy": "QUEUE"}),
                ("TriggerDeployment", {"pipeline_name": pipeline, "version": "1"}),
                ("GetHistory", {"pipeline_name": pipeline, "limit": 5}),
                ("UpdatePipeline", {"name": pipeline, "description": "d"}),
            ]

            async def leaving() -> None:
                nonlocal left
                method, fields = rng.choice(choices)
                call = asyncio.create_task(client.call(method, **fields))
                await asyncio.sleep(rng.uniform(0, 0.02))
                left += not call.done()
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)

            for _ in range(calls // 50):
                await asyncio.gather(*(leaving() for _ in range(50)))
            assert left > calls // 4, "most left before their answer"
            async with asyncio.timeout(10):
                # Who has left so many calls is refused until the server has let go of their streams.
                while isinstance(await outcome(client.call("GetPipeline", name=pipeline)), Refused):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                reads = (client.call("GetPipeline", name=pipeline) for _ in range(50))
                await asyncio.gather(*reads)
            assert connections() == before
        assert running.stop() == 0
    audit.check(sql, pipeline)
