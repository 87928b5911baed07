"""The service as a process: secrets in files, a schema that it must not change, a Redis URL with options."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TextIO

import grpc
import pytest
from psycopg.conninfo import make_conninfo

from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import TypedClient
from support.databases import as_url, database
from support.processes import children
from support.servers import Server
from support.steps import refusal, trigger
from support.stores import Stores

WORKERS = 2
SECRET = "s3cret"  # noqa: S105  # nobody's


class Workers(Server):
    arguments = ("serve", "--workers", str(WORKERS))


class NoMigration(Server):
    arguments = ("serve", "--no-migrate")


def lines(log: TextIO) -> list[str]:
    log.seek(0)
    return log.read().splitlines()


def shown(pid: int) -> str:
    """A process's environment and command line."""
    folder = Path(f"/proc/{pid}")
    return (folder / "environ").read_text() + (folder / "cmdline").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at environments in /proc")
async def test_a_secret_in_a_file_gets_into_no_environment_and_no_log(
    stores: Stores, folder: Path, log: TextIO, pipeline: str
) -> None:
    url = as_url(make_conninfo(stores.database_url, password=SECRET))
    secrets = {"database_url": url, "redis_url": stores.redis_url}
    settings = {}
    for field, secret in secrets.items():
        file = folder / field
        file.write_text(f"{secret}\n")
        file.chmod(0o644 if field == "database_url" else 0o640)
        settings[f"DP_{field.upper()}_FILE"] = str(file)
    workers = Workers(settings, log)
    try:
        async with grpc.aio.insecure_channel(workers.address) as channel:
            await trigger(TypedClient(channel), pipeline)
        pids = [workers.process.pid, *children(workers.process.pid)]
        assert len(pids) == 1 + WORKERS
        for pid in pids:
            assert SECRET not in shown(pid)
    finally:
        workers.stop()
    assert SECRET not in "".join(lines(log))
    warnings = [line for line in map(json.loads, lines(log)) if line["level"] == "warning"]
    assert [line["path"] for line in warnings if "can read a file with secrets" in line["event"]] == [
        settings["DP_DATABASE_URL_FILE"]
    ]


async def test_serve_without_migrating_serves_a_current_schema_only(stores: Stores, pipeline: str) -> None:
    own = {"DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": stores.redis_url}
    server = NoMigration(own)
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            await trigger(TypedClient(channel), pipeline)
    finally:
        server.stop()
    with database(stores.database_url, "dp_not_migrated") as url:
        ended = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deployment_pipeline", *NoMigration.arguments),
            env={**os.environ, **own, "DP_DATABASE_URL": as_url(url)},
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await ended.communicate()
    assert ended.returncode == 2
    assert said.decode() == (
        "deployment-pipeline: the database does not have this release's schema: run `deployment-pipeline"
        " migrate`, or leave out --no-migrate\n"
    )


async def test_options_of_other_programs_in_the_redis_url_break_nothing(
    settings: Settings, pipeline: str
) -> None:
    options = "decode_responses=true&protocol=3&socket_timeout=0.000001&max_connections=1"
    url = f"{settings.redis_url}?{options}"
    async with (
        running(settings.model_copy(update={"redis_url": url})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        client = TypedClient(channel)
        await trigger(client, pipeline)
        for _ in range(3):
            assert (await refusal(trigger(client, pipeline, "2"))).reason == "PIPELINE_BUSY"
