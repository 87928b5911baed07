"""What is done to Redis."""

import asyncio
import random
import shutil
import socket
import uuid

import redis as redis_client

from deployment_pipeline.run.embedded import Redis
from support.replication import TCPRedis
from support.rig import STRIKES, WORK_SECONDS, Rig, pause


async def _for_a_while(rig: Rig, trouble: str, much: float) -> int:
    before = rig.to_redis.affected
    setattr(rig.to_redis, trouble, much)
    await asyncio.sleep(WORK_SECONDS * 0.7)
    setattr(rig.to_redis, trouble, type(much)())
    return rig.to_redis.affected - before


async def redis_away(rig: Rig, rng: random.Random) -> int:
    return await _for_a_while(rig, "away", True)


async def redis_slow(rig: Rig, rng: random.Random) -> int:
    return await _for_a_while(rig, "delay_seconds", 2.0)


async def redis_black_hole(rig: Rig, rng: random.Random) -> int:
    return await _for_a_while(rig, "black_hole", True)


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
        await pause()
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
            names = {key.decode().partition(":{")[2] for key in redis.keys("dp:*")}
            for name in sorted(names):
                forged += 1
                _forge(redis, f"dp:active:{{{name}", f"dp:lease:{{{name}", rng)
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
