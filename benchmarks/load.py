"""What the callers do, and how much of it was done."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import quantiles

from google.protobuf.message import Message

from benchmarks import echo, h2
from dp.v1 import deployment_pipeline_pb2 as pb

SERVICE = "/dp.v1.DeploymentPipeline/"
TRIGGER, ADVANCE = SERVICE + "TriggerDeployment", SERVICE + "AdvanceStage"
STATUS, HISTORY = SERVICE + "GetDeploymentStatus", SERVICE + "GetHistory"
CREATE = SERVICE + "CreatePipeline"
OK, FAILED_PRECONDITION = 0, 9
WARM_UP_SECONDS = 0.3
CONNECTIONS = 32

# Starts one piece of work on a connection, and calls back when it is done.
Work = Callable[[h2.Connection, Callable[[], None]], None]


@dataclass
class Measured:
    per_second: float
    latencies_ms: list[float] = field(repr=False)

    def percentile(self, percent: int) -> float:
        return quantiles(self.latencies_ms, n=100)[percent - 1]


async def measure(
    address: str, work: Work, callers: int, seconds: float, metadata: h2.Metadata = ()
) -> Measured:
    """Callers who begin again as soon as they are done."""
    connections = await h2.connect(address, min(callers, CONNECTIONS), metadata)
    latencies: list[float] = []
    over = False
    under_way = 0
    idle = asyncio.Event()

    def begin(connection: h2.Connection) -> None:
        nonlocal under_way
        under_way += 1
        began = time.perf_counter()

        def done() -> None:
            nonlocal under_way
            under_way -= 1
            latencies.append(time.perf_counter() - began)
            if not over:
                begin(connection)
            elif not under_way:
                idle.set()

        work(connection, done)

    for caller in range(callers):
        begin(connections[caller % len(connections)])
    await asyncio.sleep(WARM_UP_SECONDS)
    latencies.clear()
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    per_second = len(latencies) / (time.perf_counter() - began)
    over = True
    async with asyncio.timeout(20):
        await idle.wait()
    for connection in connections:
        connection.close()
    return Measured(per_second, [latency * 1000 for latency in latencies])


def echoes(connection: h2.Connection, done: Callable[[], None]) -> None:
    connection.call(echo.PATH, b"", lambda status, _: done() if status == OK else fail("Echo", status))


class Lives:
    """A trigger and four advances: the life of a deployment, on a pipeline that nobody else uses now."""

    def __init__(self, prefix: str, pipelines: int) -> None:
        self.free = deque(f"{prefix}-{number}" for number in range(pipelines))
        self.latencies_ms: dict[str, list[float]] = {"trigger": [], "advance": []}

    def __call__(self, connection: h2.Connection, done: Callable[[], None]) -> None:
        pipeline = self.free.popleft()
        request = pb.TriggerDeploymentRequest(pipeline_name=pipeline, version="1.0.0")
        advance = b""
        left = 4
        kind = "trigger"
        began = time.perf_counter()

        def answered(status: int, message: bytes) -> None:
            nonlocal left, began, kind, advance
            if status != OK:
                fail(kind, status)
            self.latencies_ms[kind].append((time.perf_counter() - began) * 1000)
            if kind == "trigger":
                id = pb.DeploymentStatus.FromString(message).id
                advance = pb.AdvanceStageRequest(deployment_id=id).SerializeToString()
                kind = "advance"
            if not left:
                if pb.DeploymentStatus.FromString(message).status != pb.DeploymentStatus.COMPLETED:
                    raise AssertionError("four advances did not complete it")
                self.free.append(pipeline)
                done()
                return
            left -= 1
            began = time.perf_counter()
            connection.call(ADVANCE, advance, answered)

        connection.call(TRIGGER, request.SerializeToString(), answered)


def calls(path: str, requests: Sequence[Message], expected: int = OK) -> Work:
    """One of these requests after the other."""
    turns = itertools.cycle([request.SerializeToString() for request in requests])

    def work(connection: h2.Connection, done: Callable[[], None]) -> None:
        connection.call(
            path, next(turns), lambda status, _: done() if status == expected else fail(path, status)
        )

    return work


async def lone_beside(
    address: str, path: str, request: Message, crowd: Work, callers: int, seconds: float
) -> float:
    """The median of one call at a time, in milliseconds, while so many callers make others."""
    beside = asyncio.create_task(measure(address, crowd, callers, seconds))
    await asyncio.sleep(WARM_UP_SECONDS)
    measured = await measure(address, calls(path, [request]), 1, seconds - WARM_UP_SECONDS)
    await beside
    return measured.percentile(50)


async def herd(address: str, pipeline: str, size: int) -> tuple[float, dict[int, int]]:
    """That many triggers at once: seconds until the last answer, and how often each status came."""
    connections = await h2.connect(address, CONNECTIONS)
    message = pb.TriggerDeploymentRequest(pipeline_name=pipeline, version="1.0.0").SerializeToString()
    statuses: dict[int, int] = {}
    over = asyncio.Event()

    def answered(status: int, _: bytes) -> None:
        statuses[status] = statuses.get(status, 0) + 1
        if sum(statuses.values()) == size:
            over.set()

    began = time.perf_counter()
    for number in range(size):
        connections[number % CONNECTIONS].call(TRIGGER, message, answered)
    await over.wait()
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return seconds, statuses


def fail(what: str, status: int) -> None:
    raise AssertionError(f"{what} was answered with status {status}")
