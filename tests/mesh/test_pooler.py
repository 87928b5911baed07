"""Behind a real PgBouncer (the one on PATH): it works, or the start says what to change."""

import asyncio
import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from deployment_pipeline.postgres import CannotUse, Postgres, migrate
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support import audit
from support.clients import TypedClient
from support.steps import advance, queue, status, trigger
from support.stores import Stores, scratch_folder
from support.table import NOTES

pytestmark = pytest.mark.mesh

ROLE = "dp_pooled"
POOL_SIZE = 4
START_SECONDS = 10

Pooler = Callable[..., str]


@pytest.fixture
def database(stores: Stores, sql: psycopg.Connection) -> Iterator[str]:
    """The URL of a database that is migrated, past the pooler."""
    for statement in (f"CREATE ROLE {ROLE} LOGIN PASSWORD '{ROLE}'", f"CREATE DATABASE {ROLE} OWNER {ROLE}"):
        sql.execute(statement.encode())
    try:
        url = make_conninfo(stores.database_url, dbname=ROLE, user=ROLE, password=ROLE)
        migrate.migrate(url)
        yield url
    finally:
        for statement in (f"DROP DATABASE {ROLE} WITH (FORCE)", f"DROP ROLE {ROLE}"):
            sql.execute(statement.encode())


@pytest.fixture
def pooler(database: str) -> Iterator[Pooler]:
    """Starts PgBouncer with these settings; returns the database's URL through it."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(pgbouncer(database, settings))


@contextlib.contextmanager
def pgbouncer(database: str, settings: dict[str, str]) -> Iterator[str]:
    program = shutil.which("pgbouncer")
    assert program, "there is no pgbouncer on PATH: apt-get install pgbouncer"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    NOTES[:] = [*(note for note in NOTES if "PgBouncer" not in note), version.splitlines()[0]]
    with scratch_folder() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        config = _config(folder, database, {"listen_port": str(port), **settings})
        user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        process = subprocess.Popen(
            [program, str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user
        )
        try:
            _wait_for(port)
            yield f"postgresql://{ROLE}:{ROLE}@127.0.0.1:{port}/{ROLE}"
        finally:
            process.terminate()
            process.wait()


def _config(folder: Path, database: str, settings: dict[str, str]) -> Path:
    (folder / "users").write_text(f'"{ROLE}" "{ROLE}"\n')
    server = conninfo_to_dict(database)
    target = f"host={server['host']} port={server.get('port') or 5432} dbname={ROLE}"
    given = {
        "listen_addr": "127.0.0.1",
        "unix_socket_dir": "",
        "auth_type": "plain",
        "auth_file": str(folder / "users"),
        "admin_users": ROLE,
        **settings,
    }
    lines = ["[databases]", f"{ROLE} = {target}", "[pgbouncer]", *(f"{k} = {v}" for k, v in given.items())]
    config = folder / "pgbouncer.ini"
    config.write_text("\n".join(lines))
    return config


def _wait_for(port: int) -> None:
    give_up_at = time.monotonic() + START_SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)


def do_as_told(told: str, url: str) -> None:
    """What the refusal says: the role's settings, then new connections."""
    commands = re.findall("ALTER ROLE [^;]+", told)
    assert len(commands) >= 4
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as own:
        for command in commands:
            own.execute(command.encode())
    with psycopg.connect(re.sub(r"[^/]+$", "pgbouncer", url), autocommit=True) as console:
        console.pgconn.exec_(b"RECONNECT")


async def refusal(url: str, *, prepares: bool = True) -> str:
    postgres = Postgres(url, POOL_SIZE, 64, prepares=prepares)
    with pytest.raises(CannotUse) as refused:
        await postgres.open()
    assert "\n" not in str(refused.value)
    return str(refused.value)


async def it_works(settings: Settings, url: str, *, prepares: bool) -> None:
    """Many calls of all kinds at once: each gets its own answer, and the books are right."""
    own = {"database_url": url, "pool_size": POOL_SIZE, "prepare": prepares}
    async with (
        running(settings.model_copy(update=own)) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        client = TypedClient(channel)
        names = [f"p-{n}" for n in range(20)]
        await asyncio.gather(
            *(client.call("CreatePipeline", name=name, stages=["build", "deploy"]) for name in names)
        )

        async def work(name: str) -> None:
            first = await trigger(client, name, f"of {name}", request_id="first")
            waiting = await queue(client, name, "2")
            assert (await status(client, waiting.id)).queue_position == 1
            for stage in ("build", "deploy"):
                assert (await advance(client, first.id, expected_stage=stage)).id == first.id
            state = await client.call("GetPipelineState", name=name)
            assert (state.pipeline.name, state.active.id) == (name, waiting.id)
            assert (await status(client, first.id)).version == f"of {name}"
            history = await client.call("GetHistory", pipeline_name=name)
            assert [d.version for d in history.deployments] == ["2", f"of {name}"]

        await asyncio.gather(*(work(name) for name in names))
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as sql:
        for name in names:
            audit.check(sql, name)
        sources = sql.execute(
            "SELECT DISTINCT source FROM pg_settings WHERE name IN ('statement_timeout', 'plan_cache_mode')"
        )
        assert sources.fetchall() == [("user",)], "we set nothing in its sessions"


@pytest.mark.parametrize("extra", [{}, {"ignore_startup_parameters": "options"}])
async def test_whole_sessions_work_once_the_role_brings_its_settings(
    settings: Settings, pooler: Pooler, extra: dict[str, str]
) -> None:
    url = pooler(**extra)  # session is its default
    do_as_told(await refusal(url), url)
    migrate.migrate(url)
    await it_works(settings, url, prepares=True)


@pytest.mark.parametrize(
    ("mode", "round_robin"), [("transaction", "0"), ("transaction", "1"), ("statement", "0")]
)
async def test_transactions_work_without_prepared_statements_and_are_refused_with_them(
    settings: Settings, pooler: Pooler, mode: str, round_robin: str
) -> None:
    url = pooler(pool_mode=mode, ignore_startup_parameters="options", server_round_robin=round_robin)
    do_as_told(await refusal(url, prepares=False), url)
    await it_works(settings, url, prepares=False)
    # Now there are several sessions behind it, too.
    assert "set DP_PREPARE=false" in await refusal(url)


async def test_what_a_pooler_says_is_passed_on(pooler: Pooler) -> None:
    url = make_conninfo(pooler(), options="-c search_path=public")
    assert "unsupported startup parameter" in await refusal(url)


async def test_a_migration_needs_whole_sessions_and_to_finish_does_not(pooler: Pooler, database: str) -> None:
    url = pooler(pool_mode="transaction")
    migrate.migrate(url)  # there is nothing to do
    migrate.finish(url, force=True)
    with psycopg.connect(database, autocommit=True) as sql:
        assert sql.execute("SELECT FROM pg_locks WHERE locktype = 'advisory'").rowcount == 0
        sql.execute("UPDATE dp_installation SET functions_digest = 'another'")
    with pytest.raises(CannotUse, match="gives each transaction another session"):
        migrate.migrate(url)
    migrate.migrate(pooler())
