"""The HTTP endpoint of a service that runs: in one process, and for several workers."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from types import MappingProxyType
from typing import Any, TextIO

import grpc
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from deployment_pipeline import metrics
from deployment_pipeline.edge import health
from deployment_pipeline.release import VERSION
from deployment_pipeline.run import listening
from deployment_pipeline.run.endpoint import answering
from deployment_pipeline.run.report import Report
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from dp.v1 import deployment_pipeline_pb2 as pb
from support.asking import Answer, ask, asked, until, until_ready
from support.clients import SERVICE, Client, TypedClient
from support.processes import children
from support.proxy import postgres_proxy
from support.servers import Server, server
from support.steps import refusal, trigger
from support.stores import Stores

METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["DeploymentPipeline"].methods]
NUMBERS = ["1", "2"]  # of the workers


class Workers(Server):
    arguments = ("serve", "--workers", str(len(NUMBERS)))


class OnDefaultPort(Server):
    ports = MappingProxyType({"DP_LISTEN": "127.0.0.1:0"})


@pytest.fixture(scope="module")
def workers(stores: Stores) -> Iterator[Workers]:
    own = {"DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": stores.redis_url, "DP_LOG_LEVEL": "error"}
    made = Workers(own)
    yield made
    assert made.stop() == 0


def families(answer: Answer) -> dict[str, Metric]:
    """Each of which is there once."""
    assert answer.status == 200
    found = [*text_string_to_metric_families(answer.body)]
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def total(answer: Answer, name: str, **labels: str) -> float | None:
    """Of the series that have these labels; None: there is none."""
    samples = [sample for family in families(answer).values() for sample in family.samples]
    values = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(values) if values else None


async def test_every_method_is_counted_from_its_start_on(stores: Stores, pipeline: str) -> None:
    with server(stores, {"DP_LOG_LEVEL": "error"}) as it:
        answer = await asked(it.metrics_address, "/metrics")
        for method in METHODS:
            labels = {"grpc_service": SERVICE, "grpc_method": method, "grpc_type": "unary"}
            assert total(answer, "grpc_server_started_total", **labels) == 0
            assert total(answer, "grpc_server_handled_total", grpc_code="OK", **labels) == 0
            assert total(answer, "grpc_server_handling_seconds_count", **labels) == 0
        assert total(answer, "dp_build_info", version=VERSION) == 1
        assert total(answer, "process_resident_memory_bytes")
        async with grpc.aio.insecure_channel(it.address) as channel:
            client = TypedClient(channel)
            for name in (pipeline, pipeline, "no-such-pipeline"):
                with contextlib.suppress(Exception):
                    await client.call("GetPipeline", name=name)
        of = {"grpc_method": "GetPipeline"}
        answer = await until(
            it.metrics_address,
            "/metrics",
            lambda answer: total(answer, "grpc_server_started_total", **of) == 3,
        )
        assert total(answer, "grpc_server_handled_total", grpc_code="OK", **of) == 2
        assert total(answer, "grpc_server_handled_total", grpc_code="NotFound", **of) == 1
        assert total(answer, "grpc_server_handling_seconds_count", **of) == 3
        assert total(answer, "dp_refusals_total", reason="PIPELINE_NOT_FOUND", served_from="service") == 1
        assert "worker" not in answer.body
        assert pipeline not in answer.body


async def test_who_refused_a_busy_pipeline_is_counted(client: Client, pipeline: str) -> None:
    def counted() -> list[float]:
        labels = [{"reason": "PIPELINE_BUSY", "served_from": who} for who in ("postgres", "redis")]
        return [metrics.REGISTRY.get_sample_value("dp_refusals_total", of) or 0 for of in labels]

    await trigger(client, pipeline)
    before = counted()
    # Who may have sent it before is answered by Postgres, even if Redis knows better.
    assert (await refusal(trigger(client, pipeline, "2", request_id="r"))).reason == "PIPELINE_BUSY"
    assert (await refusal(trigger(client, pipeline, "3"))).reason == "PIPELINE_BUSY"
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1]


@pytest.fixture
async def report() -> AsyncIterator[tuple[Report, str]]:
    """To be filled by a server, and where it is told."""

    async def exposition() -> str:
        return ""

    made = Report([], lambda: False, exposition)
    listener = listening.alone("127.0.0.1:0", "DP_METRICS_LISTEN")
    async with answering(listener, made):
        yield made, f"127.0.0.1:{listener.getsockname()[1]}"


async def test_it_is_ready_while_postgres_answers(
    report: tuple[Report, str], settings: Settings, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_PAUSE_SECONDS", 0.1)
    made, where = report
    assert (await asked(where, "/healthz/ready")).said["status"] == "NOT_SERVING", "it has not started"
    async with (
        postgres_proxy(stores.database_url) as (proxy, url),
        running(settings.model_copy(update={"database_url": url}), report=made) as [listener],
    ):
        assert (await until_ready(where, ready=True)).said["listen"] == [listener.address]
        proxy.away = True
        await until_ready(where, ready=False)
        assert (await asked(where, "/healthz/live")).status == 200
        proxy.away = False
        await until_ready(where, ready=True)
    assert (await asked(where, "/healthz/ready")).status == 503


@pytest.mark.parametrize("kind", [Server, Workers])
async def test_from_the_beginning_of_a_stop_it_is_not_ready_and_still_serves(
    kind: type[Server], stores: Stores, pipeline: str
) -> None:
    own = {"DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": stores.redis_url, "DP_DRAIN_MS": "2000"}
    it = await asyncio.to_thread(kind, own)
    try:
        assert (await asked(it.metrics_address, "/healthz/ready")).status == 200
        async with grpc.aio.insecure_channel(it.address) as channel:
            client = TypedClient(channel)
            await client.call("GetPipeline", name=pipeline)
            it.process.send_signal(signal.SIGTERM)
            await until_ready(it.metrics_address, ready=False)
            assert (await client.call("GetPipeline", name=pipeline)).name == pipeline
            assert (await asked(it.metrics_address, "/healthz/live")).status == 200
            assert families(await asked(it.metrics_address, "/metrics"))
        assert await asyncio.to_thread(it.process.wait, 15) == 0
        with pytest.raises(ConnectionError):
            await asked(it.metrics_address, "/healthz/live")
    finally:
        if it.process.poll() is None:
            it.stop(signal.SIGKILL)


def numbers(answer: Answer) -> list[str]:
    """Of the workers whose metrics are there."""
    return sorted({s.labels["worker"] for family in families(answer).values() for s in family.samples})


async def until_there(workers: Workers, *wanted: str) -> Answer:
    return await until(workers.metrics_address, "/metrics", lambda answer: numbers(answer) == [*wanted])


async def call(address: str, method: str, **arguments: Any) -> None:
    """On a connection of its own, which the kernel gives to a worker."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        await TypedClient(channel).call(method, **arguments)


async def test_workers_are_told_apart_and_nothing_is_summed(workers: Workers, pipeline: str) -> None:
    answer = await asked(workers.metrics_address, "/healthz/ready")
    assert (answer.status, answer.said["listen"]) == (200, [workers.address])
    for _ in range(24):
        await call(workers.address, "GetPipeline", name=pipeline)
    of = {"grpc_method": "GetPipeline", "grpc_code": "OK"}
    answer = await until(
        workers.metrics_address,
        "/metrics",
        lambda answer: total(answer, "grpc_server_handled_total", **of) == 24,
    )
    assert numbers(answer) == NUMBERS
    each = [total(answer, "grpc_server_handled_total", worker=number, **of) for number in NUMBERS]
    assert 0 not in each, "24 connections on one of two workers: once in 8 million times"
    assert answer.body.count("# TYPE grpc_server_handled_total counter\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
async def test_a_worker_that_is_killed_counts_from_0_again_under_its_number(workers: Workers) -> None:
    await until_there(workers, *NUMBERS)

    def counted(answer: Answer) -> float | None:
        return total(answer, "grpc_server_started_total", grpc_method="ListPipelines", worker="1")

    while not counted(await asked(workers.metrics_address, "/metrics")):
        await call(workers.address, "ListPipelines")
    os.kill(children(workers.process.pid)[0], signal.SIGKILL)
    await until_there(workers, "2")
    assert (await asked(workers.metrics_address, "/healthz/ready")).status == 200, "the other one serves"
    assert counted(await until_there(workers, *NUMBERS)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
async def test_a_worker_that_hangs_is_not_ready_and_left_out_until_it_is_replaced(workers: Workers) -> None:
    await until_there(workers, *NUMBERS)
    os.kill(children(workers.process.pid)[0], signal.SIGSTOP)
    left_out = asyncio.create_task(
        until(workers.metrics_address, "/metrics", lambda answer: len(numbers(answer)) == 1)
    )
    await until_ready(workers.metrics_address, ready=False)
    assert (await asked(workers.metrics_address, "/healthz/live")).status == 200
    await left_out
    await until_ready(workers.metrics_address, ready=True)
    await until_there(workers, *NUMBERS)


def test_without_its_default_port_it_serves_all_the_same(stores: Stores, log: TextIO) -> None:
    default = Settings().metrics_listen
    with socket.socket() as holder:
        with contextlib.suppress(OSError):  # then somebody else has taken it
            holder.bind(("127.0.0.1", int(default.rpartition(":")[2])))
            holder.listen()
        own = {"DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": stores.redis_url}
        it = OnDefaultPort(own, log)
        try:
            assert it.metrics_address == ""
        finally:
            assert it.stop() == 0
    log.seek(0)
    said = f"cannot listen on {default} (DP_METRICS_LISTEN): Address already in use"
    [line] = [line for line in log if said in line]
    assert '"level": "warning"' in line


def test_without_an_address_there_is_no_endpoint(stores: Stores, log: TextIO) -> None:
    with server(stores, {"DP_METRICS_LISTEN": ""}, log) as it:
        assert it.metrics_address == ""
        assert it.stop() == 0
    log.seek(0)
    assert '"metrics": null' in log.read()


def test_an_endpoint_ends_with_a_process_that_is_killed(stores: Stores) -> None:
    with server(stores) as it:
        assert ask(it.metrics_address, "/healthz/live").status == 200
        it.stop(signal.SIGKILL)
        with pytest.raises(ConnectionError):
            ask(it.metrics_address, "/healthz/live")
