"""What is done to break it: each fault goes on beside the workload, and says how often it struck."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
import redis as redis_client

from deployment_pipeline.embedded import Redis
from support.replication import Postgres, TCPRedis
from support.rig import WORK_SECONDS, Rig

Inject = Callable[[Rig, random.Random], Awaitable[int]]
STRIKES = 8


@dataclass(frozen=True)
class Fault:
    name: str
    inject: Inject
    # S3 promises something while Redis is reachable and has lost nothing.
    redis_sound: bool = True
    # One seed of it belongs to `make test`.
    quick: bool = False
    # How the callers behave: arguments of Rig.work, made from a random generator.
    callers: Callable[[random.Random], dict[str, Any]] = lambda rng: {}


async def _pause() -> None:
    await asyncio.sleep(WORK_SECONDS / STRIKES)


async def none(rig: Rig, rng: random.Random) -> int:
    return 1


async def at(point: str, action: str, rig: Rig, rng: random.Random) -> int:
    await asyncio.sleep(rng.uniform(0.05, 0.2))
    rig.arm(point, action)
    for _ in range(100):
        if fired := rig.reached():
            if action == "stop":
                # Long enough for every lease to die and for others to end what it started.
                await asyncio.sleep(1.0)
                for server in rig.servers:
                    server.process.send_signal(signal.SIGCONT)
            return len(fired)
        await asyncio.sleep(0.01)
    rig.disarm()
    return 0


# Redis


async def redis_away(rig: Rig, rng: random.Random) -> int:
    before = rig.to_redis.affected
    rig.to_redis.away = True
    await asyncio.sleep(WORK_SECONDS * 0.7)
    rig.to_redis.away = False
    return rig.to_redis.affected - before


async def redis_slow(rig: Rig, rng: random.Random) -> int:
    before = rig.to_redis.affected
    rig.to_redis.delay_seconds = 2.0
    await asyncio.sleep(WORK_SECONDS * 0.7)
    rig.to_redis.delay_seconds = 0.0
    return rig.to_redis.affected - before


async def redis_black_hole(rig: Rig, rng: random.Random) -> int:
    before = rig.to_redis.affected
    rig.to_redis.black_hole = True
    await asyncio.sleep(WORK_SECONDS * 0.7)
    rig.to_redis.black_hole = False
    return rig.to_redis.affected - before


async def redis_flushed(rig: Rig, rng: random.Random) -> int:
    lost = 0
    with rig.redis_client as redis:
        for _ in range(40):
            lost += int(redis.dbsize())
            redis.flushall()
            await asyncio.sleep(WORK_SECONDS / 50)
    return lost


async def redis_answers_lost(rig: Rig, rng: random.Random) -> int:
    before = rig.to_redis.affected
    for _ in range(STRIKES):
        rig.to_redis.lose_one_answer = True
        await _pause()
    return rig.to_redis.affected - before


async def redis_from_an_old_dump(rig: Rig, rng: random.Random) -> int:
    with rig.redis_client as redis:
        redis.save()
        shutil.copy(rig.redis.data / "dump.rdb", rig.redis.data / "old.rdb")
        keys = int(redis.dbsize())
    await asyncio.sleep(WORK_SECONDS * 0.5)
    assert rig.redis.process
    rig.redis.process.kill()
    rig.redis.process.wait()
    shutil.copy(rig.redis.data / "old.rdb", rig.redis.data / "dump.rdb")
    rig.redis = await asyncio.to_thread(Redis, rig.redis.data)
    return 1 + keys


async def redis_forged(rig: Rig, rng: random.Random) -> int:
    forged = 0
    with rig.redis_client as redis:
        for _ in range(STRIKES * 2):
            names = [key.split(b"{")[1].rstrip(b"}").decode() for key in redis.keys("dp:*")]
            for name in names:
                forged += 1
                _forge(redis, f"dp:active:{{{name}}}", f"dp:lease:{{{name}}}", rng)
            await asyncio.sleep(WORK_SECONDS / STRIKES / 2)
    return forged


def _forge(redis: redis_client.Redis, active: str, lease: str, rng: random.Random) -> None:
    ghost = uuid.uuid4()
    match rng.randrange(6):
        case 0:
            redis.delete(lease)
            redis.rpush(lease, "x")
        case 1:
            redis.set(lease, b"x" * 10_000_000)
        case 2:
            redis.set(active, str(ghost))
        case 3:
            redis.set(lease, "T:999999999")
        case 4:
            redis.set(lease, f"C:999999:{ghost}:99999999999999:0:build:1")
        case _:
            redis.delete(active)
            redis.hset(active, "x", "y")


async def redis_out_of_memory(rig: Rig, rng: random.Random) -> int:
    with rig.redis_client as redis:
        redis.config_set("maxmemory", 1)
        errors = int(redis.info("stats")["total_error_replies"])
        await asyncio.sleep(WORK_SECONDS * 0.7)
        refused = int(redis.info("stats")["total_error_replies"]) - errors
        redis.config_set("maxmemory", 0)
    return refused


async def redis_failover(rig: Rig, rng: random.Random) -> int:
    """A replica takes over that has not got the primary's last writes. (No Sentinel: we switch.)"""
    home = rig.to_redis.upstream
    folder = rig.folder.parent / f"failover-{uuid.uuid4().hex[:8]}"
    ports = [_free_port(), _free_port()]
    servers = [await asyncio.to_thread(TCPRedis, folder / str(port), port) for port in ports]
    with redis_client.Redis(port=ports[0]) as primary, redis_client.Redis(port=ports[1]) as replica:
        replica.replicaof("127.0.0.1", str(ports[0]))
        for _ in range(300):
            if replica.info("replication")["master_link_status"] == "up":
                break
            await asyncio.sleep(0.02)
        await _switch(rig, ("127.0.0.1", ports[0]))
        await asyncio.sleep(0.3)
        replica.replicaof("NO", "ONE")
        kept = primary.info("stats")["total_commands_processed"]
        await asyncio.sleep(0.2)
        lost = primary.info("stats")["total_commands_processed"] - kept
    await _switch(rig, ("127.0.0.1", ports[1]))
    await asyncio.sleep(0.3)
    await _switch(rig, home)
    for server in servers:
        await asyncio.to_thread(server.stop)
    return int(lost)


async def _switch(rig: Rig, upstream: str | tuple[str, int]) -> None:
    rig.to_redis.upstream = upstream
    rig.to_redis.away = True
    await asyncio.sleep(0.01)
    rig.to_redis.away = False


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


# Postgres


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
            await _pause()
            struck += sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'deployment-pipeline'"
            ).rowcount
    return struck


async def postgres_answers_lost(rig: Rig, rng: random.Random) -> int:
    before = rig.to_postgres.affected
    for _ in range(STRIKES):
        rig.to_postgres.lose_one_answer = True
        await _pause()
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
            await _pause()
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


# The service


async def replicas_rolled(rig: Rig, rng: random.Random) -> int:
    """SIGTERM to one after the other, each started again before the next."""
    for server in rig.servers:
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        await rig.connect()
    return len(rig.servers)


async def replica_killed(rig: Rig, rng: random.Random) -> int:
    await asyncio.sleep(rng.uniform(0.1, 0.4))
    server = rng.choice(rig.servers)
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    await asyncio.to_thread(server.start)
    await rig.connect()
    return 1


# The callers


def impatient(rng: random.Random) -> dict[str, Any]:
    return {"timeout": lambda: rng.uniform(0.001, 0.1)}


def repeating(rng: random.Random) -> dict[str, Any]:
    return {"copies": lambda: rng.randint(2, 5)}


def meshed(rng: random.Random) -> dict[str, Any]:
    return {"mesh": True}


KILLED_AT = [
    ("trigger.before_gate", False),
    ("trigger.after_gate", True),
    ("trigger.before_commit", False),
    ("trigger.after_commit", True),
    ("trigger.before_fill", False),
    ("trigger.after_fill", False),
    ("cancel.before_commit", False),
    ("cancel.after_commit", False),
    ("advance.before_commit", False),
    ("advance.after_commit", False),
    ("end.before_redis", False),
    ("end.after_redis", False),
]

FAULTS = [
    Fault("no fault", none, quick=True),
    *(
        # A dead process's end may be without a tombstone, though its commit stands.
        Fault(f"service killed at {point}", partial(at, point, "kill"), quick=quick)
        for point, quick in KILLED_AT
    ),
    Fault("service stopped between commit and fill", partial(at, "trigger.after_commit", "stop"), quick=True),
    Fault("service stopped before the tombstone", partial(at, "end.before_redis", "stop")),
    Fault("service killed", replica_killed),
    Fault("replicas rolled under load", replicas_rolled),
    Fault("redis refuses connections", redis_away, redis_sound=False, quick=True),
    Fault("redis slow by 2 s", redis_slow, redis_sound=False),
    Fault("redis a black hole", redis_black_hole, redis_sound=False),
    Fault("redis flushed all the time", redis_flushed, redis_sound=False, quick=True),
    Fault("redis answers lost", redis_answers_lost, redis_sound=False),
    Fault("redis back from an old dump", redis_from_an_old_dump, redis_sound=False),
    Fault("redis keys forged", redis_forged, redis_sound=False, quick=True),
    Fault("redis out of memory", redis_out_of_memory, redis_sound=False),
    Fault("postgres restarted, fast", partial(postgres_restarted, signal.SIGINT)),
    Fault("postgres restarted, immediate", partial(postgres_restarted, signal.SIGQUIT)),
    Fault("postgres killed", postgres_killed),
    Fault("postgres backends terminated", backends_terminated, quick=True),
    Fault("postgres answers lost", postgres_answers_lost, quick=True),
    Fault("postgres gone for a while", postgres_gone),
    Fault("postgres slow by 500 ms", postgres_slow),
    Fault("a stranger holds the rows", rows_locked),
    Fault("postgres standby promoted", standby_promoted),
    Fault("redis failover that loses writes", redis_failover, redis_sound=False),
    Fault("deadlines of 1 to 100 ms", none, callers=impatient, quick=True),
    Fault("changes sent 2 to 5 times at once", none, callers=repeating, quick=True),
    Fault("a mesh that retries, and a replica killed", replica_killed, callers=meshed),
]
