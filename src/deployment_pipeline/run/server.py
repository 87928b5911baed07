"""The composition root: stores, engine and server are made here, started, drained and stopped."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence

import structlog

from deployment_pipeline import metrics
from deployment_pipeline.edge.listeners import Listener, Mode
from deployment_pipeline.edge.rpc import Rpc
from deployment_pipeline.edge.tls import Certificates
from deployment_pipeline.engine import Engine
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.postgres import Postgres
from deployment_pipeline.release import VERSION
from deployment_pipeline.run import endpoint, listening
from deployment_pipeline.run.access import access
from deployment_pipeline.run.lifeline import answer
from deployment_pipeline.run.report import Report
from deployment_pipeline.run.settings import Settings
from deployment_pipeline.run.workers import STOP_SIGNALS

# For calls and changes to end, from SIGTERM on. Closing the connections takes up to two seconds more, and the
# process is gone within 15.
STOP_SECONDS = 12.0

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def running(
    settings: Settings, *, shares_port: bool = False, report: Report | None = None
) -> AsyncIterator[Sequence[Listener]]:
    """Serve until the context ends, which then drains. Yields the listeners with their ports. report: is kept
    true from now on. Raises CannotUse, CannotListen, StoreUnavailable, Unreadable."""
    async with contextlib.AsyncExitStack() as stack:
        certificates = _certificates(settings)
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
        files = [certificates.file] if certificates else []
        entrance, info = await stack.enter_async_context(access(settings, engine.reads.pipeline_of, *files))
        rpc = Rpc(
            engine,
            entrance,
            info,
            shares_port=shares_port,
            reflects=settings.reflection,
            max_streams=settings.max_streams,
            attempt_id_headers=settings.attempt_id_headers.split(","),
        )
        if not shares_port:
            listening.check(settings.listeners)
        bound = [_bind(rpc, listener, certificates) for listener in settings.listeners]
        if report:
            report.listen = [listener.address for listener in bound]
            report.is_ready = lambda: rpc.is_ready
        await rpc.start(postgres.probe)
        _collect_garbage_less()
        try:
            yield bound
        finally:
            stopping_since = asyncio.get_running_loop().time()
            await rpc.stop(settings.drain_ms / 1000)
            # A change that Postgres does not answer is left to it: its caller has been told.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(stopping_since + STOP_SECONDS):
                    await engine.close()


def _certificates(settings: Settings) -> Certificates | None:
    encrypts = any(listener.mode is not Mode.PLAIN for listener in settings.listeners)
    if not (encrypts and settings.tls_cert and settings.tls_key):
        return None
    return Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def _bind(rpc: Rpc, listener: Listener, certificates: Certificates | None) -> Listener:
    try:
        return rpc.bind(listener, certificates)
    except RuntimeError as error:
        raise listening.CannotListen(f"cannot listen on {listener.address} (DP_LISTEN): {error}") from error


def _collect_garbage_less() -> None:
    """What is loaded stays, and is not looked at again and again; calls leave few cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def serve(
    settings: Settings,
    ready: Callable[[Sequence[Listener]], object],
    lifeline: int | None = None,
    http: socket.socket | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called with the listeners, and their ports, once calls are
    answered. lifeline: the file descriptor of a worker's, which shares its ports, and stops when its
    supervisor is gone. http: what the HTTP endpoint listens on, if there is one."""
    metrics.BUILD.info({"version": VERSION})
    report = Report([one.address for one in settings.listeners], lambda: False, _exposition)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    if lifeline is not None:
        answering = asyncio.create_task(answer(lifeline, report))
        answering.add_done_callback(lambda _: stop.set())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    async with (
        endpoint.answering(http, report),
        running(settings, shares_port=lifeline is not None, report=report) as bound,
    ):
        ready(bound)
        await stop.wait()
        log.info("stopping")


async def _exposition() -> str:
    return metrics.exposition()
