"""The service over TLS and mutual TLS, on several listeners."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.certificates import Authority, Secret, caller
from support.clients import TypedClient
from support.handshakes import connection
from support.servers import Server, lines
from support.steps import trigger
from support.stores import ROOT, Stores

CI = "spiffe://corp/ci"
GRANTS = """
[[grant]]
match = { id = "spiffe://corp/*" }
role = "admin"
"""
WORKERS = 2
# The kernel gives each connection to a worker: with this many, none gets all of them.
CONNECTIONS = 24


class Workers(Server):
    arguments = ("serve", "--workers", str(WORKERS))


@pytest.fixture
def open_to_all(folder: Path, secret: Secret) -> dict[str, Any]:
    """Settings of a server that lets everybody do everything, whoever he is."""
    grants = folder / "grants.toml"
    grants.write_text(GRANTS)
    return {**secret.settings(), "anonymous": "admin", "grants_file": grants}


def environment(stores: Stores, settings: Mapping[str, object]) -> dict[str, str]:
    own = {"DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": stores.redis_url}
    return {**own, **{f"DP_{name.upper()}": str(value) for name, value in settings.items()}}


def command(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    own = {name: value for name, value in os.environ.items() if not name.startswith("DP_")}
    return subprocess.run(
        [sys.executable, "-m", "deployment_pipeline", *arguments],
        env={**own, **settings},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


async def test_one_server_serves_plain_tls_and_mtls(
    settings: Settings, open_to_all: dict[str, Any], authority: Authority, pipeline: str
) -> None:
    listen = "127.0.0.1:0,tls://127.0.0.1:0,mtls://127.0.0.1:0"
    ways = (None, caller(authority), caller(authority, authority.client(CI)))
    async with running(settings.model_copy(update={**open_to_all, "listen": listen})) as bound:
        for listener, credentials in zip(bound, ways, strict=True):
            async with connection(listener.address, credentials) as channel:
                client = TypedClient(channel)
                assert (await trigger(client, pipeline, request_id="the same")).current_stage == "build"
                health: Any = health_pb2_grpc.HealthStub(channel)
                ready = await health.Check(health_pb2.HealthCheckRequest(service="readiness"))
                assert ready.status == health_pb2.HealthCheckResponse.SERVING


async def test_workers_share_every_listener(
    stores: Stores, open_to_all: dict[str, Any], authority: Authority, log: TextIO, pipeline: str
) -> None:
    listen = "plain://127.0.0.1:0,tls://127.0.0.1:0,mtls://127.0.0.1:0"
    workers = Workers(environment(stores, {**open_to_all, "listen": listen}), log)
    ways = (None, caller(authority), caller(authority, authority.client(CI)))
    try:
        plain, tls, mtls = workers.addresses
        [serving] = [line for line in lines(log) if line["event"] == "serving"]
        assert serving["listen"] == f"plain://{plain},tls://{tls},mtls://{mtls}"
        for address, credentials in zip(workers.addresses, ways, strict=True):
            for _ in range(CONNECTIONS):
                async with connection(address, credentials) as channel:
                    await TypedClient(channel).call("GetPipeline", name=pipeline)
    finally:
        assert await asyncio.to_thread(workers.stop) == 0
    calls = [line for line in lines(log) if line["event"] == "call"]
    assert len(calls) == CONNECTIONS * len(ways)
    for begin in range(0, len(calls), CONNECTIONS):
        assert {call["worker"] for call in calls[begin : begin + CONNECTIONS]} == {1, 2}


def test_what_is_open_or_missing_keeps_it_from_serving_and_nothing_else(stores: Stores) -> None:
    both = {"DP_LISTEN": "0.0.0.0:1,mtls://127.0.0.1:2", "DP_DATABASE_URL": stores.database_url}
    for arguments in (("serve",), ("serve", "--embedded"), ("worker", "1", "0")):
        ended = command(*arguments, **both)
        assert ended.returncode == 2
        said = ended.stderr.splitlines()
        assert said[0] == "deployment-pipeline: invalid settings:"
        assert [line.partition(":")[0] for line in said[1:]] == [
            "DP_TLS_CERT",
            "DP_TLS_KEY",
            "DP_TLS_CLIENT_CA",
            "DP_LISTEN",
            "DP_GRANTS_FILE",
        ]
    assert command("migrate", **both).returncode == 0
    assert command("config", **both).returncode == 0


def test_a_certificate_that_cannot_be_served_is_reported(
    stores: Stores, secret: Secret, authority: Authority
) -> None:
    secret.put(authority.server().key, authority.server().chain, b"")
    given = {"listen": "tls://127.0.0.1:0", "tls_cert": secret.cert, "tls_key": secret.key}
    for arguments in (("serve",), ("serve", "--workers", "2")):
        ended = command(*arguments, **environment(stores, given))
        assert ended.returncode == 2
        assert f"{secret.key} is not the key of the first certificate in {secret.cert}" in ended.stderr
        assert "Traceback" not in ended.stderr
