"""What is done to Postgres."""

import asyncio
import contextlib
import os
import random
import signal
import uuid

import psycopg

from support.replication import Postgres
from support.rig import STRIKES, WORK_SECONDS, Rig, pause


async def postgres_restarted(how: signal.Signals, rig: Rig, rng: random.Random) -> int:
    await asyncio.sleep(rng.uniform(0.1, 0.3))
    assert rig.postgres.process
    rig.postgres.process.send_signal(how)
    await asyncio.to_thread(rig.postgres.process.wait)
    rig.postgres = await asyncio.to_thread(Postgres, rig.postgres.data)
    return 1


async def postgres_killed(rig: Rig, rng: random.Random) -> int:
    """kill -9 of every process of it, as when the machine dies."""
    await asyncio.sleep(rng.uniform(0.1, 0.3))
    await _kill(rig.postgres)
    rig.postgres = await asyncio.to_thread(Postgres, rig.postgres.data)
    return 1


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return [int(child) for child in children.read().split()]


async def backends_terminated(rig: Rig, rng: random.Random) -> int:
    struck = 0
    with rig.sql as sql:
        for _ in range(STRIKES):
            await pause()
            struck += sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE starts_with(application_name, 'deployment-pipeline/')"
            ).rowcount
    return struck


async def postgres_answers_lost(rig: Rig, rng: random.Random) -> int:
    before = rig.to_postgres.affected
    for _ in range(STRIKES):
        rig.to_postgres.lose_one_answer = True
        await pause()
    return rig.to_postgres.affected - before


async def postgres_gone(rig: Rig, rng: random.Random) -> int:
    """Answers get lost, and then nobody is there for a while."""
    before = rig.to_postgres.affected
    rig.to_postgres.lose_answers = True
    await asyncio.sleep(WORK_SECONDS)
    rig.to_postgres.lose_answers = rig.to_postgres.away = False
    return rig.to_postgres.affected - before


async def postgres_slow(rig: Rig, rng: random.Random) -> int:
    before = rig.to_postgres.affected
    rig.to_postgres.delay_seconds = 0.5
    await asyncio.sleep(WORK_SECONDS)
    rig.to_postgres.delay_seconds = 0.0
    return rig.to_postgres.affected - before


async def rows_locked(rig: Rig, rng: random.Random) -> int:
    """A stranger holds every pipeline's row."""
    waited = 0
    with rig.sql as other, psycopg.connect(rig.postgres.url) as stranger:
        stranger.execute("SELECT FROM dp_pipelines FOR UPDATE")
        for _ in range(STRIKES):
            await pause()
            row = other.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            ).fetchone()
            waited += row[0] if row else 0
    return waited


async def standby_promoted(rig: Rig, rng: random.Random) -> int:
    """A synchronous standby takes over from a primary that is killed."""
    primary, folder = rig.postgres, rig.folder.parent / f"standby-{uuid.uuid4().hex[:8]}"
    await asyncio.to_thread(primary.copy_to, folder)
    standby = await asyncio.to_thread(Postgres, folder)
    with rig.sql as sql:
        sql.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        sql.execute("SELECT pg_reload_conf()")
        for _ in range(200):
            if sql.execute("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'").rowcount:
                break
            await asyncio.sleep(0.02)
        else:
            return 0
    await asyncio.sleep(rng.uniform(0.1, 0.3))
    await _kill(primary)
    await asyncio.to_thread(standby.promote)
    rig.postgres = standby
    rig.to_postgres.upstream = str(standby.sockets / ".s.PGSQL.5432")
    return 1


async def _kill(postgres: Postgres) -> None:
    assert postgres.process
    for pid in (postgres.process.pid, *_children(postgres.process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(postgres.process.wait)
    await asyncio.to_thread(postgres.stop)
