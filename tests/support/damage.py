"""What an attack does to a server, and to a caller beside it."""

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from support.attacks import MIB, Attack
from support.clients import Refused, TypedClient
from support.servers import Server

# What is promised under attack, of each process.
MAX_MIB = 200
MAX_P99_MS = 500
SOME_CALLS = 5


@dataclass
class Damage:
    """What an attack did. Milliseconds are of a caller beside it."""

    mib_before: float = 0
    mib_peak: float = 0
    mib_after: float = 0
    ms: list[float] = field(default_factory=list)
    ms_after: list[float] = field(default_factory=list)
    failed: list[Refused] = field(default_factory=list)
    files_before: int = 0  # with the caller's connection

    @property
    def p99_ms(self) -> float:
        return p99(self.ms)

    @property
    def p99_ms_after(self) -> float:
        return p99(self.ms_after)


def p99(times: Sequence[float]) -> float:
    return sorted(times)[len(times) * 99 // 100]


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def open_files(pid: int) -> int:
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


async def connections_gone(server: Server, found: Damage) -> None:
    """Within five seconds the server has closed what the attack left."""
    for _ in range(100):
        if open_files(server.process.pid) <= found.files_before:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the server keeps connections that are gone")


async def damage_by(
    server: Server, pipeline: str, attack: Attack, *, stands: float = 0, recovers: float = 1
) -> Damage:
    """stands: for how many seconds the attack stays once it is made. recovers: how long the server is looked
    at after it."""
    pid = server.process.pid
    found = Damage(mib_before=rss_mib(pid))
    async with grpc.aio.insecure_channel(server.address) as channel:
        client = TypedClient(channel)
        await client.call("GetPipeline", name=pipeline)
        found.files_before = open_files(pid)
        times = found.ms
        over = False

        async def caller() -> None:
            while not over:
                began, kept = time.perf_counter(), times
                try:
                    await client.call("GetPipeline", name=pipeline, timeout=10)
                except Refused as refused:
                    found.failed.append(refused)
                kept.append((time.perf_counter() - began) * 1000)
                found.mib_peak = max(found.mib_peak, rss_mib(pid))
                await asyncio.sleep(0.005)

        calling = asyncio.create_task(caller())
        with contextlib.ExitStack() as stack:
            await asyncio.to_thread(stack.enter_context, attack(server.address))
            await asyncio.sleep(stands)
        times = found.ms_after
        await asyncio.sleep(recovers)
        while len(found.ms_after) < SOME_CALLS:  # noqa: ASYNC110  # a call ends by its deadline
            await asyncio.sleep(0.01)
        over = True
        await calling
        found.mib_after = rss_mib(pid)
    return found
