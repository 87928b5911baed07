"""What is done to break it: each fault goes on beside the workload, and says how often it struck."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from grpc import StatusCode

from support.history import Record
from support.postgres_faults import (
    backends_terminated,
    postgres_answers_lost,
    postgres_gone,
    postgres_killed,
    postgres_restarted,
    postgres_slow,
    rows_locked,
    standby_promoted,
)
from support.redis_faults import (
    redis_answers_lost,
    redis_away,
    redis_black_hole,
    redis_failover,
    redis_flushed,
    redis_forged,
    redis_from_an_old_dump,
    redis_out_of_memory,
    redis_slow,
)
from support.releases import unpack
from support.rig import FaultyServer, Rig
from support.servers import Server
from support.stores import scratch_folder

Inject = Callable[[Rig, random.Random], Awaitable[int]]


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
    # Where the callers are the fault: which calls it struck.
    struck: Callable[[Record], bool] | None = None


async def none(rig: Rig, rng: random.Random) -> int:
    return 0


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


# The service


async def replicas_rolled(rig: Rig, rng: random.Random) -> int:
    """SIGTERM to one after the other, each started again before the next."""
    for server in rig.servers:
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        await rig.connect()
    return len(rig.servers)


async def releases_rolled(rig: Rig, rng: random.Random) -> int:
    """One after the other becomes the release before, and then this one again: both run side by side."""
    with scratch_folder() as folder:
        before = unpack(folder)
        this = rig.servers[0].settings
        for settings in ({**this, **before}, this):
            for server in rig.servers:
                await asyncio.to_thread(server.stop)
                server.settings = settings
                # The release before knows nothing of these tests' failpoints.
                server.program = (FaultyServer if settings is this else Server).program
                await asyncio.to_thread(server.start)
                await rig.connect()
                await asyncio.sleep(0.3)
    return 2 * len(rig.servers)


async def replica_killed(rig: Rig, rng: random.Random) -> int:
    await asyncio.sleep(rng.uniform(0.1, 0.4))
    server = rng.choice(rig.servers)
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    await asyncio.to_thread(server.start)
    await rig.connect()
    return 1


# The callers


def answered(record: Record) -> bool:
    return record.answer is not None


def out_of_time(record: Record) -> bool:
    return record.refused is not None and record.refused.code is StatusCode.DEADLINE_EXCEEDED


def replayed(record: Record) -> bool:
    return record.answer is not None and record.answer.replayed


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
    Fault("no fault", none, quick=True, struck=answered),
    *(
        # A dead process's end may be without a tombstone, though its commit stands.
        Fault(f"service killed at {point}", partial(at, point, "kill"), quick=quick)
        for point, quick in KILLED_AT
    ),
    Fault("service stopped between commit and fill", partial(at, "trigger.after_commit", "stop"), quick=True),
    Fault("service stopped before the tombstone", partial(at, "end.before_redis", "stop")),
    Fault("service killed", replica_killed),
    Fault("replicas rolled under load", replicas_rolled),
    Fault(
        "two releases side by side, rolled forth and back",
        releases_rolled,
        quick=True,
        callers=lambda rng: {"seconds": 6.0},
    ),
    Fault("redis refuses connections", redis_away, redis_sound=False),
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
    Fault("postgres answers lost", postgres_answers_lost),
    Fault("postgres gone for a while", postgres_gone),
    Fault("postgres slow by 500 ms", postgres_slow),
    Fault("a stranger holds the rows", rows_locked),
    Fault("postgres standby promoted", standby_promoted),
    Fault("redis failover that loses writes", redis_failover, redis_sound=False),
    Fault("deadlines of 1 to 100 ms", none, callers=impatient, struck=out_of_time),
    Fault("changes sent 2 to 5 times at once", none, callers=repeating, struck=replayed, quick=True),
    Fault("a mesh that retries, and a replica killed", replica_killed, callers=meshed),
]
