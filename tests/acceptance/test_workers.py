"""Several workers on one port: they share the calls, are replaced when they end, and end together."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, TextIO

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deployment_pipeline.run.workers import ASK_SECONDS, MAX_UNANSWERED
from support.clients import Refused, TypedClient
from support.processes import all_gone, children, gone
from support.servers import Server, lines
from support.steps import outcome, trigger
from support.stores import Stores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

WORKERS = 3
# The kernel gives each connection to a worker: with this many, none gets all of them.
CONNECTIONS = 24
# From the moment when it hangs.
REPLACED_SECONDS = 10


class Workers(Server):
    arguments = ("serve", "--workers", str(WORKERS))


@pytest.fixture
def workers(stores: Stores, log: TextIO) -> Iterator[Workers]:
    own = {"DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": stores.redis_url}
    running = Workers(own, log)
    yield running
    if running.process.poll() is None:
        running.stop(signal.SIGKILL)


async def channels(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """Each with a connection of its own."""
    for _ in range(CONNECTIONS):
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield channel


async def replaced(workers: Workers, others: list[int]) -> bool:
    """Whether there are as many again, and the others among them."""
    for _ in range(500):
        if len(pids := children(workers.process.pid)) == WORKERS:
            return {*others} < {*pids}
        await asyncio.sleep(0.02)
    return False


async def test_they_share_a_port_and_the_calls(workers: Workers, log: TextIO, pipeline: str) -> None:
    assert len(children(workers.process.pid)) == WORKERS
    ids = set()
    async for channel in channels(workers.address):
        health: Any = health_pb2_grpc.HealthStub(channel)
        ready = await health.Check(health_pb2.HealthCheckRequest(service="readiness"))
        assert ready.status == health_pb2.HealthCheckResponse.SERVING
        ids.add((await trigger(TypedClient(channel), pipeline, request_id="the same")).id)
    assert len(ids) == 1
    assert workers.stop() == 0
    calls = [line for line in lines(log) if line["event"] == "call"]
    assert len(calls) == CONNECTIONS
    assert {call["worker"] for call in calls} == {1, 2, 3}


async def test_one_that_dies_is_replaced_while_the_others_serve(
    workers: Workers, log: TextIO, pipeline: str
) -> None:
    before = children(workers.process.pid)
    os.kill(before[0], signal.SIGKILL)
    for _ in range(500):
        if ended := [line for line in lines(log) if line["event"] == "a worker ended, and is replaced"]:
            break
        await asyncio.sleep(0.02)
    assert [(line["worker"], line["exit_code"]) for line in ended] == [(1, -signal.SIGKILL)]
    async for channel in channels(workers.address):
        client = TypedClient(channel)
        assert (await client.call("GetPipeline", name=pipeline)).name == pipeline
    assert await replaced(workers, before[1:])
    assert workers.stop() == 0


async def test_one_that_hangs_is_replaced(workers: Workers, log: TextIO, pipeline: str) -> None:
    hung, *others = children(workers.process.pid)
    os.kill(hung, signal.SIGSTOP)
    assert await all_gone([hung], REPLACED_SECONDS)
    assert await replaced(workers, others)
    async for channel in channels(workers.address):
        client = TypedClient(channel)
        answer = await outcome(client.call("GetPipeline", name=pipeline, timeout=5))
        if isinstance(answer, Refused):
            # The kernel gave the connection to the one that was killed, just before its sockets were closed.
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            answer = await client.call("GetPipeline", name=pipeline, timeout=5)
        assert answer.name == pipeline
    events = [line["event"] for line in lines(log) if line["level"] == "error"]
    assert events == ["a worker does not answer, and is killed", "a worker ended, and is replaced"]
    assert workers.stop() == 0


async def test_one_that_hangs_does_not_hold_up_the_end(workers: Workers) -> None:
    pids = children(workers.process.pid)
    os.kill(pids[0], signal.SIGSTOP)
    assert await asyncio.to_thread(workers.stop) == 0
    assert all(map(gone, pids))


async def test_a_supervisor_that_was_stopped_kills_nobody(workers: Workers, log: TextIO) -> None:
    pids = children(workers.process.pid)
    os.kill(workers.process.pid, signal.SIGSTOP)
    await asyncio.sleep(ASK_SECONDS * (MAX_UNANSWERED + 2))
    os.kill(workers.process.pid, signal.SIGCONT)
    await asyncio.sleep(ASK_SECONDS * 2)
    assert children(workers.process.pid) == pids
    assert workers.stop() == 0
    assert not [line for line in lines(log) if line["level"] == "error"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_the_supervisor_ends_all(workers: Workers, how: signal.Signals) -> None:
    pids = children(workers.process.pid)
    assert workers.stop(how) == 0
    assert all(map(gone, pids))


async def test_none_outlives_a_supervisor_that_is_killed(workers: Workers) -> None:
    pids = children(workers.process.pid)
    workers.stop(signal.SIGKILL)
    assert await all_gone(pids)


async def test_no_other_service_joins_their_port(workers: Workers, stores: Stores) -> None:
    own = {"DP_LISTEN": workers.address, "DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": "redis://x"}
    for arguments in (("serve",), ("serve", "--workers", "2")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DP_")}
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deployment_pipeline", *arguments),
            env={**environment, **own},
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await second.communicate()
        assert second.returncode == 2
        assert re.search(rf"cannot listen on {workers.address} .*in use", said.decode())
