"""The composition root: stores, engine and server are made here, started, drained and stopped."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Callable

import structlog

from deployment_pipeline.edge.rpc import Rpc
from deployment_pipeline.engine import Engine
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.postgres import Postgres
from deployment_pipeline.run import listening
from deployment_pipeline.run.lifeline import answer
from deployment_pipeline.run.settings import Settings
from deployment_pipeline.run.workers import STOP_SIGNALS

# For calls and changes to end, from SIGTERM on. Closing the connections takes up to two seconds more, and the
# process is gone within 15.
STOP_SECONDS = 12.0

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def running(settings: Settings, *, shares_port: bool = False) -> AsyncIterator[int]:
    """Serve until the context ends, which then drains. Yields the port. Raises CannotUse, CannotListen,
    StoreUnavailable."""
    async with contextlib.AsyncExitStack() as stack:
        postgres = Postgres(
            settings.database_url, settings.pool_size, settings.max_batch, prepares=settings.prepare
        )
        await postgres.open()
        stack.push_async_callback(postgres.close)
        installation = await postgres.reads.installation()
        guard = Guard(settings.redis_url, installation.id, settings.lease_ms, settings.max_batch)
        stack.push_async_callback(guard.close)
        await guard.open()
        engine = Engine(postgres, guard, installation.page_token_key, requires_tokens=settings.require_tokens)
        rpc = Rpc(
            engine,
            shares_port=shares_port,
            reflects=settings.reflection,
            max_streams=settings.max_streams,
            attempt_id_headers=settings.attempt_id_headers.split(","),
        )
        if not shares_port:
            listening.check(settings.listen)
        try:
            port = rpc.bind(settings.listen)
        except RuntimeError as error:
            raise listening.CannotListen(
                f"cannot listen on {settings.listen} (DP_LISTEN): {error}"
            ) from error
        await rpc.start(postgres.probe)
        _collect_garbage_less()
        try:
            yield port
        finally:
            stopping_since = asyncio.get_running_loop().time()
            await rpc.stop(settings.drain_ms / 1000)
            # A change that Postgres does not answer is left to it: its caller has been told.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(stopping_since + STOP_SECONDS):
                    await engine.close()


def _collect_garbage_less() -> None:
    """What is loaded stays, and is not looked at again and again; calls leave few cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def serve(settings: Settings, ready: Callable[[int], object], lifeline: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called with the port once calls are answered. lifeline: the
    file descriptor of a worker's, which shares its port, and stops when its supervisor is gone."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    if lifeline is not None:
        answering = asyncio.create_task(answer(lifeline))
        answering.add_done_callback(lambda _: stop.set())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    async with running(settings, shares_port=lifeline is not None) as port:
        ready(port)
        await stop.wait()
        log.info("stopping")
