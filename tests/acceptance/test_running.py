"""The service as a process: restarts, signals, health, settings."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from deployment_pipeline.release import VERSION
from support.clients import SERVICE, Client, TypedClient
from support.processes import all_gone, children, gone
from support.servers import Server, free_address, server
from support.steps import advance, refusal, status, trigger
from support.stores import ROOT, Stores, scratch_folder

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_d1_a_restart_in_the_middle_of_a_pipeline_loses_nothing(
    stores: Stores, pipeline: str, how: signal.Signals
) -> None:
    with server(stores) as running:
        async with grpc.aio.insecure_channel(running.address) as channel:
            client = TypedClient(channel)
            id = (await trigger(client, pipeline)).id
            before = await advance(client, id, request_id="r")
        running.stop(how)
        running.start()
        async with grpc.aio.insecure_channel(running.address) as channel:
            client = TypedClient(channel)
            after = await status(client, id)
            assert after.message == before.message
            assert (await refusal(trigger(client, pipeline, "2"))).facts["deployment_id"] == id
            again = await advance(client, id, request_id="r")
            assert (again.replayed, again.current_stage) == (True, "test")
            assert (await advance(client, id, times=2)).status_name == "COMPLETED"
            await trigger(client, pipeline, "2")
        assert running.stop() == 0


async def test_sigterm_lets_the_calls_under_way_finish(stores: Stores, pipeline: str, client: Client) -> None:
    id = (await trigger(client, pipeline)).id
    with server(stores) as running, psycopg.connect(stores.database_url) as stranger:
        async with grpc.aio.insecure_channel(running.address) as channel:
            there = TypedClient(channel)
            await there.call("GetPipeline", name=pipeline)
            stranger.execute("SELECT FROM dp_pipelines WHERE name = %s FOR UPDATE", [pipeline])
            advancing = asyncio.create_task(advance(there, id))
            await asyncio.sleep(0.3)
            assert not advancing.done(), "it waits for the row"
            running.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            stranger.rollback()
            assert (await advancing).current_stage == "test"
        assert await asyncio.to_thread(running.process.wait, 15) == 0


async def test_a_lock_held_by_a_stranger_ends_with_the_callers_deadline(
    client: Client, pipeline: str, stores: Stores
) -> None:
    id = (await trigger(client, pipeline)).id
    with psycopg.connect(stores.database_url) as stranger:
        stranger.execute("SELECT FROM dp_pipelines WHERE name = %s FOR UPDATE", [pipeline])
        refused = await refusal(advance(client, id, timeout=0.5))
        # The server gives up a little sooner, and says why; a machine that stalls may miss that moment.
        assert refused.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        await asyncio.sleep(0.3)
        waiting = stranger.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        ).fetchone()
        assert waiting == (0,), "the statement went with its caller's time"
    assert (await status(client, id)).current_stage == "build"


async def test_health_knows_four_names(server: str) -> None:
    async with grpc.aio.insecure_channel(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE, "liveness", "readiness"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.Check(health_pb2.HealthCheckRequest(service="nonsense"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        listed = await stub.List(health_pb2.HealthListRequest())
        assert {name: status.status for name, status in listed.statuses.items()} == dict.fromkeys(
            ("", SERVICE, "liveness", "readiness"), SERVING
        )


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_is_served_under_both_names(server: str, version: str) -> None:
    async with grpc.aio.insecure_channel(server) as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer: Any = await call.read()
    assert SERVICE in {service.name for service in answer.list_services_response.service}


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DP_")}
    return subprocess.run(
        [sys.executable, "-m", "deployment_pipeline", *arguments],
        env={**environment, **settings},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_healthcheck_tells_by_its_exit_code(stores: Stores) -> None:
    with server(stores) as running:
        where = {"DP_LISTEN": running.address, "DP_METRICS_LISTEN": running.metrics_address}
        for service in ("readiness", "liveness"):
            result = run("healthcheck", "--service", service, **where)
            assert (result.returncode, result.stdout) == (0, "SERVING\n")
        result = run("healthcheck", DP_METRICS_LISTEN=running.metrics_address)
        assert result.returncode == 1
        assert result.stdout.startswith("ANOTHER_SERVER: ")
        running.stop()
    result = run("healthcheck", **where)
    assert result.returncode == 1
    assert result.stdout == f"NO_ANSWER: no server answers at {running.metrics_address} (DP_METRICS_LISTEN)\n"
    result = run("healthcheck", DP_METRICS_LISTEN="")
    assert (result.returncode, result.stdout) == (2, "")
    assert "DP_METRICS_LISTEN is empty" in result.stderr


def test_healthcheck_loads_no_grpc() -> None:
    program = (
        "import sys, deployment_pipeline.cli.main as cli\n"
        "try: cli.main()\n"
        "finally: assert not {'grpc', 'prometheus_client', 'psycopg', 'redis'} & sys.modules.keys()\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DP_")}
    result = subprocess.run(
        [sys.executable, "-c", program, "healthcheck"],
        env={**environment, "DP_METRICS_LISTEN": free_address()},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.returncode, result.stderr) == (1, "")


def test_a_port_for_health_and_metrics_that_is_taken_is_reported_if_it_was_set(stores: Stores) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        for workers in ("1", "2"):
            result = run(
                *("serve", "--workers", workers),
                DP_LISTEN="127.0.0.1:0",
                DP_METRICS_LISTEN=taken,
                DP_DATABASE_URL=stores.database_url,
                DP_REDIS_URL=stores.redis_url,
            )
            assert result.returncode == 2
            assert f"cannot listen on {taken} (DP_METRICS_LISTEN): Address already in use" in result.stderr
            assert "Traceback" not in result.stderr


def test_config_prints_the_settings_without_secrets() -> None:
    result = run("config", DP_DATABASE_URL="postgresql://u:s3cret@db/dp", DP_POOL_SIZE="3")
    assert "DP_POOL_SIZE=3\n" in result.stdout
    assert "DP_DATABASE_URL=postgresql://db/dp\n" in result.stdout
    assert "s3cret" not in result.stdout + result.stderr


def test_broken_settings_are_reported_all_at_once() -> None:
    result = run("serve", DP_LISTEN="nowhere", DP_POOL_SIZE="0", DP_NONSENSE="1")
    assert result.returncode == 2
    for name in ("DP_LISTEN", "DP_POOL_SIZE", "DP_NONSENSE"):
        assert name in result.stderr
    assert "Traceback" not in result.stderr


def test_config_and_migrate_and_version_do_one_thing_each(stores: Stores) -> None:
    migrated = run("migrate", DP_DATABASE_URL=stores.database_url)
    assert (migrated.returncode, migrated.stderr) == (0, "")
    assert run("--version").stdout.strip() == VERSION


def test_missing_stores_are_reported() -> None:
    result = run("serve")
    assert result.returncode == 2
    assert "DP_DATABASE_URL and DP_REDIS_URL must be set" in result.stderr


def test_a_port_that_is_taken_is_reported(stores: Stores) -> None:
    with server(stores) as running:
        result = run(
            "serve",
            DP_LISTEN=running.address,
            DP_DATABASE_URL=stores.database_url,
            DP_REDIS_URL=stores.redis_url,
        )
        running.stop()
    assert result.returncode == 2
    assert f"cannot listen on {running.address} (DP_LISTEN): Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_address_of_somebody_else_is_reported(stores: Stores) -> None:
    result = run(
        "serve",
        DP_LISTEN="192.0.2.1:50051",
        DP_INSECURE="true",
        DP_ANONYMOUS="none",
        DP_DATABASE_URL=stores.database_url,
        DP_REDIS_URL=stores.redis_url,
    )
    assert result.returncode == 2
    assert "192.0.2.1:50051 (DP_LISTEN)" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_postgres_that_is_away_is_reported(stores: Stores) -> None:
    result = run("serve", DP_DATABASE_URL="postgresql://127.0.0.1:1/dp", DP_REDIS_URL=stores.redis_url)
    assert result.returncode == 2
    assert "DP_DATABASE_URL" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to see child processes")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_embedded_stores_keep_their_data_and_leave_no_process(how: signal.Signals) -> None:
    with embedded_server() as embedded:
        for run in range(2):
            stores_of_it = children(embedded.process.pid)
            assert len(stores_of_it) == 2
            async with grpc.aio.insecure_channel(embedded.address) as channel:
                client = TypedClient(channel)
                answer = await client.call("CreatePipeline", name="shop", stages=["a"], request_id="r")
                assert answer.replayed is (run == 1)
            assert embedded.stop(how) == 0
            assert all(map(gone, stores_of_it))
            if run == 0:
                embedded.start()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed service leaves its stores behind")
async def test_embedded_stores_end_with_a_service_that_is_killed() -> None:
    with embedded_server() as embedded:
        stores_of_it = children(embedded.process.pid)
        embedded.stop(signal.SIGKILL)
        assert await all_gone(stores_of_it)
        embedded.start()
        assert embedded.stop() == 0


async def test_a_second_server_on_the_same_folder_is_refused() -> None:
    with embedded_server() as embedded:
        second = run("serve", "--embedded", **embedded.settings)
        assert second.returncode == 2
        assert f"in use by another deployment-pipeline (process {embedded.process.pid})" in second.stderr
        async with grpc.aio.insecure_channel(embedded.address) as channel:
            await TypedClient(channel).call("CreatePipeline", name="shop", stages=["a"])
        assert embedded.stop() == 0


class EmbeddedServer(Server):
    """`deployment-pipeline serve --embedded`, as `make run` starts it."""

    arguments = ("serve", "--embedded")


@contextlib.contextmanager
def embedded_server() -> Iterator[EmbeddedServer]:
    with scratch_folder() as folder:
        running = EmbeddedServer({"DP_DATA_DIR": str(folder)})
        try:
            yield running
        finally:
            if running.process.poll() is None:
                running.stop()


def test_every_setting_is_documented() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in re.findall("^DP_[A-Z_]+", run("config").stdout, re.MULTILINE):
        assert f"`{name}`" in readme
