"""Fixtures grow from each other: stores, then a server in this process, then clients of it."""

import itertools
import os

# Tests start processes from threads while gRPC runs; its fork handlers would crash the child before exec.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TextIO

import grpc
import psycopg
import pytest
import redis as redis_client
import trustme

from deployment_pipeline.edge.identity.issuer import Issuer
from deployment_pipeline.guard import redis as guard_redis
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support import servers
from support import stores as support_stores
from support.certificates import Authority, Secret
from support.clients import Client, ReflectionClient, TypedClient
from support.issuer import FakeIssuer
from support.mesh.report import REPORT
from support.rig import Rig, rig
from support.servers import Server
from support.stores import RedisKey, Stores, redis_keys, scratch_folder
from support.table import NOTES, TABLE


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> None:
    for name in list(os.environ):
        if name.startswith("DP_") and not name.startswith("DP_TEST_"):
            del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def _patience() -> Iterator[None]:
    """A machine that stalls for a moment is not what these tests are about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard_redis, "BUDGET_SECONDS", 2.0)
        yield


@pytest.fixture(scope="session")
def stores() -> Iterator[Stores]:
    with support_stores.stores() as started:
        yield started


@pytest.fixture(scope="session")
def settings(stores: Stores) -> Settings:
    return Settings(
        listen="127.0.0.1:0",
        database_url=stores.database_url,
        redis_url=stores.redis_url,
        log_level="error",
        drain_ms=0,
    )


@pytest.fixture(scope="session")
async def server(settings: Settings) -> AsyncIterator[str]:
    """A server's address."""
    async with running(settings) as [served]:
        yield served.address


@pytest.fixture(scope="module")
def replicas(stores: Stores) -> Iterator[list[Server]]:
    """Two servers in processes of their own, with their addresses, to be stopped and started."""
    with servers.replicas(stores) as started:
        yield started


@pytest.fixture(scope="session")
async def typed(server: str) -> AsyncIterator[TypedClient]:
    async with grpc.aio.insecure_channel(server) as channel:
        yield TypedClient(channel)


@pytest.fixture(scope="session")
async def reflecting(server: str) -> AsyncIterator[ReflectionClient]:
    async with grpc.aio.insecure_channel(server) as channel:
        yield await ReflectionClient.connect(channel)


@pytest.fixture
def client(typed: TypedClient) -> Client:
    return typed


@pytest.fixture(scope="session")
def new_name() -> Callable[[], str]:
    """Names that nothing else uses."""
    run, numbers = uuid.uuid4().hex[:8], itertools.count()
    return lambda: f"p-{run}-{next(numbers)}"


@pytest.fixture
async def pipeline(client: Client, new_name: Callable[[], str]) -> str:
    """A pipeline with the stages build, test and deploy, and nothing in it."""
    name = new_name()
    await client.call("CreatePipeline", name=name, stages=["build", "test", "deploy"])
    return name


@pytest.fixture
def sql(stores: Stores) -> Iterator[psycopg.Connection]:
    with psycopg.connect(stores.database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def folder() -> Iterator[Path]:
    """In the checkout, where the path is short enough for sockets."""
    with scratch_folder() as made:
        yield made


@pytest.fixture
def log(folder: Path) -> Iterator[TextIO]:
    """For a server's lines: open for reading and appending."""
    with (folder / "log").open("a+") as file:
        yield file


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def secret(folder: Path, authority: Authority) -> Secret:
    """A server's certificate, its key and the CA of its callers, in files."""
    return Secret(folder, authority.server(), authority)


@pytest.fixture
def ca(monkeypatch: pytest.MonkeyPatch) -> Iterator[trustme.CA]:
    """One that this process trusts."""
    made = trustme.CA()
    with made.cert_pem.tempfile() as path:
        monkeypatch.setenv("SSL_CERT_FILE", path)
        yield made


@pytest.fixture
def corp() -> FakeIssuer:
    """An issuer of JWTs."""
    return FakeIssuer()


@pytest.fixture
def entry(corp: FakeIssuer, ca: trustme.CA) -> Iterator[Issuer]:
    """Its entry in DP_JWT_ISSUERS, while a real https server on loopback publishes its keys."""
    with corp.serving(ca) as entry:
        yield entry


@pytest.fixture
def redis(stores: Stores) -> Iterator[redis_client.Redis]:
    with redis_client.Redis.from_url(stores.redis_url) as connection:
        yield connection


@pytest.fixture
def redis_key(stores: Stores) -> RedisKey:
    """The name of a pipeline's key: "active" or "lease"."""
    return redis_keys(stores.database_url)


@pytest.fixture(scope="session")
async def shared_rig() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield
    if TABLE:
        write = terminalreporter.write_line
        write("")
        write("| fault | seeds | calls | times reached | violations |")
        write("|---|---|---|---|---|")
        for name, line in TABLE.items():
            write(f"| {name} | {line.seeds} | {line.calls} | {line.reached} | {line.violations} |")
    for note in [*NOTES, *REPORT.lines()]:
        terminalreporter.write_line(note)
