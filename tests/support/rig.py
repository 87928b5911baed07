"""Two replicas behind proxies on stores of their own, a workload, and the recovery that ends every fault."""

import asyncio
import contextlib
import os
import random
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psycopg
import redis as redis_client
from grpc import StatusCode

from deployment_pipeline.postgres.migrate import migrate
from deployment_pipeline.run.embedded import Redis
from support.clients import Answer, Client, Refused, TypedClient
from support.contract_model import MAX_PENDING, Op
from support.history import STAGE_NAMES, History, rollback_op, trigger_op
from support.proxy import Proxy, postgres_proxy, redis_proxy
from support.replication import Postgres
from support.servers import Server
from support.stores import scratch_folder

LEASE_MS = 300
PIPELINES = 2
CALLERS = 6
WORK_SECONDS = 0.8
# A fault that strikes again and again does so this often while the work goes on.
STRIKES = 8
# L1: so long after the last fault a trigger must succeed, whatever Redis holds; with leave for slow machines.
L1_SECONDS = LEASE_MS / 1000 + 1.0 + 4.0


class FaultyServer(Server):
    program: tuple[str, ...] = ("-m", "support.faulty_server")


@dataclass
class Rig:
    folder: Path
    postgres: Postgres
    redis: Redis
    to_postgres: Proxy
    to_redis: Proxy
    servers: list[FaultyServer]
    clients: list[Client] = field(default_factory=list)
    channels: list[grpc.aio.Channel] = field(default_factory=list)
    left_channels: list[grpc.aio.Channel] = field(default_factory=list)
    history: History = field(default_factory=History)

    @property
    def sql(self) -> psycopg.Connection:
        return psycopg.connect(self.postgres.url, autocommit=True)

    @property
    def redis_client(self) -> redis_client.Redis:
        return redis_client.Redis.from_url(self.redis.url)

    def arm(self, point: str, action: str) -> None:
        # In one step: a server that finds it finds it whole.
        unseen = self.folder / "unseen"
        unseen.write_text(action)
        unseen.rename(self.folder / point)

    def reached(self) -> list[str]:
        """The failpoints that have fired since the last time."""
        path = self.folder / "reached"
        fired = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return fired

    def disarm(self) -> None:
        for path in self.folder.glob("*.*"):
            path.unlink(missing_ok=True)

    async def connect(self) -> None:
        # Closing the old ones would cancel the calls that are under way on them.
        self.left_channels += self.channels
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        self.channels = [grpc.aio.insecure_channel(s.address, options=options) for s in self.servers]
        self.clients = [TypedClient(channel) for channel in self.channels]

    async def revive(self) -> None:
        """Whatever happened to the servers: they run again."""
        for server in self.servers:
            with contextlib.suppress(ProcessLookupError):
                server.process.send_signal(signal.SIGCONT)
        dead = [server for server in self.servers if server.process.poll() is not None]
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in dead))
        await self.connect()

    def heal(self) -> None:
        for proxy in (self.to_postgres, self.to_redis):
            proxy.away = proxy.lose_answers = proxy.lose_one_answer = proxy.black_hole = False
            proxy.delay_seconds = 0.0
            proxy.release()

    async def new_pipelines(self) -> list[str]:
        names = [f"rig-{uuid.uuid4().hex[:10]}" for _ in range(PIPELINES)]
        for name in names:
            await self.clients[0].call(
                "CreatePipeline", name=name, stages=STAGE_NAMES, max_pending=MAX_PENDING
            )
        return names

    async def work(
        self,
        pipelines: list[str],
        rng: random.Random,
        *,
        seconds: float = WORK_SECONDS,
        timeout: Callable[[], float] = lambda: 8.0,
        copies: Callable[[], int] = lambda: 1,
        mesh: bool = False,
    ) -> None:
        """Callers that race on the pipelines, and repeat what they do not know the outcome of. timeout: of
        each call. copies: how many times each call with a request_id is sent at once. mesh: a proxy sends
        again what ended as UNAVAILABLE or CANCELLED, marked as Envoy does."""
        known: dict[str, list[str]] = {name: [] for name in pipelines}
        end = asyncio.get_running_loop().time() + seconds

        async def caller() -> None:
            while asyncio.get_running_loop().time() < end:
                pipeline = rng.choice(pipelines)
                op, version = choose(rng, pipeline, known[pipeline])
                sent = [
                    self.history.call(
                        Mesh(self, rng) if mesh and op.request_id else rng.choice(self.clients),
                        pipeline,
                        op,
                        version=version,
                        timeout=timeout(),
                    )
                    for _ in range(copies() if op.request_id and op.id else 1)
                ]
                record, *_ = await asyncio.gather(*sent)
                if op.method == "TriggerDeployment" and (record.answer or (record.unknown and op.id)):
                    known[pipeline].append(record.answer.id if record.answer else op.id)
                if op.redeploy_id:
                    known[pipeline].append(op.redeploy_id)
                repeats = op.request_id and op.method not in ("LockPipeline", "UnlockPipeline")
                if repeats and (record.unknown or rng.random() < 0.1):
                    await self.history.call(rng.choice(self.clients), pipeline, op, version=version)
                if record.unknown or record.reason:
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def recover(self, pipelines: list[str]) -> None:
        """L1 with what Redis holds, then L3 after a stop, a flush and a start."""
        await self.revive()
        client = self.clients[0]
        for pipeline in pipelines:
            await until(10, lambda pipeline=pipeline: self._clear(client, pipeline))  # type: ignore[misc]
            await until(L1_SECONDS, lambda pipeline=pipeline: self._trigger(client, pipeline))  # type: ignore[misc]
        await asyncio.gather(*(asyncio.to_thread(server.stop) for server in self.servers))
        self.redis_client.flushall()
        await self.revive()
        for pipeline in pipelines:
            await until(10, lambda pipeline=pipeline: self._clear(self.clients[1], pipeline))  # type: ignore[misc]
            await until(10, lambda pipeline=pipeline: self._trigger(self.clients[1], pipeline))  # type: ignore[misc]

    async def _clear(self, client: Client, pipeline: str) -> None:
        """End whatever is active or waits."""
        state = await client.call("GetPipelineState", name=pipeline)
        if state.pipeline.HasField("lock"):
            await self._do(client, pipeline, Op("UnlockPipeline", "", _id(), start_next=True))
            state = await client.call("GetPipelineState", name=pipeline)
        for deployment in [*reversed(state.queue), *([state.active] if state.HasField("active") else [])]:
            await self._do(client, pipeline, Op("CancelDeployment", deployment.id, _id()))

    async def _trigger(self, client: Client, pipeline: str) -> None:
        await self._do(client, pipeline, Op("TriggerDeployment"), version=_id())

    async def _do(self, client: Client, pipeline: str, op: Op, version: str = "") -> None:
        record = await self.history.call(client, pipeline, op, version=version)
        if record.answer is None:
            raise record.refused or AssertionError("no answer")

    def check(self, pipelines: list[str], *, redis_sound: bool) -> None:
        with self.sql as sql:
            for pipeline in pipelines:
                self.history.check(sql, pipeline, LEASE_MS / 1000, redis_sound=redis_sound)


class Mesh(Client):
    """Sends by itself again, to any replica."""

    def __init__(self, rig: Rig, rng: random.Random) -> None:
        super().__init__(rig.channels[0])
        self._rig, self._rng = rig, rng

    async def call(self, method: str, **arguments: Any) -> Answer:
        for attempt in range(1, 5):
            marked = [("x-envoy-attempt-count", str(attempt))]
            try:
                return await self._rng.choice(self._rig.clients).call(method, metadata=marked, **arguments)
            except Refused as refused:
                if attempt == 4 or refused.code not in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED):
                    raise
                await asyncio.sleep(0.05)
        raise AssertionError


async def pause() -> None:
    """Between two strikes."""
    await asyncio.sleep(WORK_SECONDS / STRIKES)


async def until(seconds: float, attempt: Callable[[], Awaitable[None]]) -> None:
    """Try again and again; the last refusal if it does not succeed in time."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await attempt()
        except Refused:
            if asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(0.05)


def _id() -> str:
    return uuid.uuid4().hex


def choose(rng: random.Random, pipeline: str, known: list[str]) -> tuple[Op, str]:
    """A call that makes sense, and the version if it is a trigger."""
    version = f"{rng.getrandbits(64):x}"
    about = known[-1 - min(rng.randrange(3), len(known) - 1)] if known else ""
    kind = rng.random()
    if not about or kind < 0.2:
        return trigger_op(pipeline, _id(), rng.choice(["REJECT", "QUEUE", "SUPERSEDE"])), version
    if kind < 0.4:
        return Op("TriggerDeployment"), version  # with no request_id: Redis may refuse it
    if kind < 0.65:
        return Op("AdvanceStage", about, _id(), expected_stage=rng.choice([None, 0, 1])), ""
    if kind < 0.78:
        return Op("CancelDeployment", about, _id()), ""
    if kind < 0.86:
        return rollback_op(about, _id(), redeploys=rng.random() < 0.5), ""
    if kind < 0.95:
        return Op("GetDeploymentStatus", about), ""
    if kind < 0.96:
        return Op("LockPipeline", "", _id()), ""
    return Op("UnlockPipeline", "", _id(), start_next=True), ""


@contextlib.asynccontextmanager
async def rig(settings: dict[str, str] | None = None) -> AsyncIterator[Rig]:
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        postgres, redis = Postgres(folder / "postgres"), Redis(folder / "redis")
        stack.callback(postgres.stop)
        stack.callback(redis.stop)
        migrate(postgres.url)
        to_postgres, database_url = await stack.enter_async_context(postgres_proxy(postgres.url))
        to_redis, redis_url = await stack.enter_async_context(redis_proxy(redis.url))
        points = folder / "points"
        points.mkdir()
        environment = {
            "DP_DATABASE_URL": database_url,
            "DP_REDIS_URL": redis_url,
            "DP_LEASE_MS": str(LEASE_MS),
            "DP_LOG_LEVEL": "error",
            "DP_TEST_FAILPOINTS": str(points),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
            **(settings or {}),
        }
        servers = [await asyncio.to_thread(FaultyServer, environment) for _ in range(2)]
        made = Rig(points, postgres, redis, to_postgres, to_redis, servers)
        try:
            await made.connect()
            yield made
        finally:
            for channel in [*made.channels, *made.left_channels]:
                await channel.close()
            made.heal()
            for server in servers:
                if server.process.poll() is None:
                    server.process.send_signal(signal.SIGCONT)
                    await asyncio.to_thread(server.stop, signal.SIGKILL)
