"""Real proxies that send calls again, and answers that get lost: what was promised holds, whoever repeats."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest

from support.clients import Client
from support.mesh.changes import CHANGES
from support.mesh.losses import Losses
from support.mesh.programs import NotInstalled
from support.mesh.report import REPORT
from support.mesh.routes import ROUTES, Route
from support.mesh.traffic import Traffic, broken_promises
from support.servers import Server

CALLS = int(os.environ.get("DP_TEST_CALLS", "200"))
LOST = 0.03

pytestmark = pytest.mark.mesh


@contextlib.asynccontextmanager
async def being_replaced(replicas: list[Server]) -> AsyncIterator[None]:
    """One after the other is killed and started, and then stopped and started, again and again."""
    over = False

    async def replace() -> None:
        while True:
            for how in (signal.SIGKILL, signal.SIGTERM):
                for replica in replicas:
                    await asyncio.to_thread(replica.stop, how)
                    await asyncio.to_thread(replica.start)
                    if over:
                        return

    replacing = asyncio.create_task(replace())
    yield
    over = True
    await replacing


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_i1_s5_repeats_do_no_harm(
    route: Route,
    replicas: list[Server],
    client: Client,
    sql: psycopg.Connection,
    new_name: Callable[[], str],
) -> None:
    losses = Losses(LOST, random.Random(route.name))  # noqa: S311  # to be the same next time
    try:
        async with contextlib.AsyncExitStack() as stack:
            address = await stack.enter_async_context(route.open([r.address for r in replicas], losses))
            if route.rolls:
                await stack.enter_async_context(being_replaced(replicas))
            traffic = Traffic(route, address, losses, client, sql, new_name)
            tallies = REPORT.tallies[route.name] = {}
            for change in CHANGES:
                tallies[change.name] = await traffic.send(change, CALLS)
    except NotInstalled as error:
        REPORT.not_run[route.name] = str(error)
        pytest.fail(f"NOT RUN: {error}")
    wrong = [found for change in CHANGES for found in broken_promises(route, change, tallies[change.name])]
    assert not wrong, "\n".join(wrong)
