"""The composition root: stores, engine and server are made here, started, drained and stopped."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Callable

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc

from deployment_pipeline.edge import reflection
from deployment_pipeline.edge.calls import Calls
from deployment_pipeline.edge.health import SERVICE, Health
from deployment_pipeline.edge.service import DeploymentPipelineService
from deployment_pipeline.engine import Engine
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.postgres.connections import Database
from deployment_pipeline.postgres.store import Store
from deployment_pipeline.run import listening
from deployment_pipeline.run.settings import Settings
from deployment_pipeline.run.workers import STOP_SIGNALS
from dp.v1 import deployment_pipeline_pb2_grpc as pb_grpc

MAX_MESSAGE_BYTES = 1024 * 1024
# Longer than the longest call, so that none is cut off; shorter than what is left of 15 s for the rest.
STOP_SECONDS = 11.0

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Callers may ping an idle connection every ten seconds.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Beyond these the core drops calls as CANCELLED; refusing them is the business of `Calls`.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
)

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def running(settings: Settings, *, shares_port: bool = False) -> AsyncIterator[int]:
    """Serve until the context ends. Yields the port. Raises StoreUnavailable, CannotListen.

    At the end health says NOT_SERVING while calls are still served, so that clients and balancers go
    elsewhere; then no new ones are taken, and those under way get their answers.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = Database(settings.database_url, settings.pool_size, settings.max_batch)
        await database.open()
        stack.push_async_callback(database.close)
        store = Store(database)
        guard = Guard(settings.redis_url, settings.lease_ms, settings.max_batch)
        stack.push_async_callback(guard.close)
        await guard.greet()
        engine = Engine(store, guard, await store.page_token_key())
        stack.push_async_callback(engine.close)
        calls = Calls()
        health = Health()
        # gRPC shares by default: a second server would silently take half of the calls.
        options = (*OPTIONS, ("grpc.so_reuseport", int(shares_port)))
        server = grpc.aio.server(options=options)
        pb_grpc.add_DeploymentPipelineServicer_to_server(DeploymentPipelineService(engine), calls)  # type: ignore[arg-type]
        server.add_generic_rpc_handlers([calls])
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        if settings.reflection:
            reflection.add(server, SERVICE, "grpc.health.v1.Health")
        if not shares_port:
            listening.check(settings.listen)
        try:
            port = server.add_insecure_port(settings.listen)
        except RuntimeError as error:
            raise listening.CannotListen(
                f"cannot listen on {settings.listen} (DP_LISTEN): {error}"
            ) from error
        await health.start()
        await server.start()
        _collect_garbage_less()
        probe = asyncio.create_task(health.keep_ready(store))
        try:
            yield port
        finally:
            await health.enter_graceful_shutdown()
            await asyncio.sleep(settings.drain_ms / 1000)
            calls.refuse_new_calls()
            probe.cancel()
            await server.stop(STOP_SECONDS)
            await calls.drain()


def _stop_once(loop: asyncio.AbstractEventLoop, lifeline: int, stop: asyncio.Event) -> None:
    loop.remove_reader(lifeline)  # its end stays readable
    stop.set()


def _collect_garbage_less() -> None:
    """What is loaded by now stays, and is not looked at again and again; calls leave few cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def serve(settings: Settings, ready: Callable[[int], object], lifeline: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called with the port once calls are answered. lifeline: the
    file descriptor of a worker's, which shares its port and stops when that ends."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    if lifeline is not None:
        loop.add_reader(lifeline, _stop_once, loop, lifeline, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    async with running(settings, shares_port=lifeline is not None) as port:
        ready(port)
        await stop.wait()
        log.info("stopping")
