"""Several processes on the same ports: started, watched, replaced and stopped together.

A worker is this program again, with an event loop, connections and health of its own; the kernel gives each
new client connection to one of them (SO_REUSEPORT). The supervisor serves nothing: it holds the ports, so
that no other service joins them, and the workers' lifelines, by which a worker says that it serves, shows
that its event loop runs, and learns that its supervisor is gone. It speaks for all of them at the HTTP
endpoint.
"""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import structlog

from deployment_pipeline.edge.listeners import Listener
from deployment_pipeline.run import endpoint
from deployment_pipeline.run.lifeline import Lifeline
from deployment_pipeline.run.listening import held
from deployment_pipeline.run.merging import merged
from deployment_pipeline.run.report import Report

# Longer than any start takes, even if as many as there may be share two cores.
START_SECONDS = 120.0
# Longer than a worker's own stop may take. All must be gone within 15 s.
STOP_SECONDS = 14.0
# A worker that ends sooner than this after its start is not replaced before.
REPLACE_SECONDS = 1.0
# How often a worker is asked whether it is alive, and how many questions it may leave without an answer. They
# are counted instead of measuring time, which also passes while the supervisor itself is stopped.
ASK_SECONDS = 1.0
MAX_UNANSWERED = 4
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = structlog.get_logger()


class CannotStart(Exception):
    """A worker ended before it served; it has said why."""


class Worker:
    """One place among the workers: a process, and those that replace it. Its lifeline's end is its end."""

    def __init__(self, number: int, environment: Mapping[str, str]) -> None:
        self.number = number
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: Lifeline | None = None
        self._started_at = 0.0

    @property
    def lifeline(self) -> Lifeline | None:
        """While it serves."""
        return self._lifeline if self._lifeline and self._lifeline.serves else None

    async def start(self) -> None:
        """Returns when it serves. Raises CannotStart, or OSError if there can be no process."""
        process, lifeline = await self._spawn()
        try:
            async with asyncio.timeout(START_SECONDS):
                serves = await lifeline.hear()
        except TimeoutError:
            process.kill()
            raise CannotStart(f"it did not serve within {START_SECONDS:.0f} s") from None
        if not serves:
            raise CannotStart("it ended before it served")
        log.info("a worker serves", worker=self.number, pid=process.pid)

    async def keep(self) -> None:
        """Replace it whenever it ends."""
        while self._process and self._lifeline:
            await self._ended(self._process, self._lifeline)
            code = self._process.wait()
            log.error("a worker ended, and is replaced", worker=self.number, exit_code=code)
            await asyncio.sleep(self._started_at + REPLACE_SECONDS - time.monotonic())
            try:
                await self.start()
            except (CannotStart, OSError) as error:
                log.warning("a worker could not be replaced", worker=self.number, error=str(error))

    async def stop(self) -> None:
        """By force if it must be."""
        if self._process and self._lifeline:
            self._process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._ended(self._process, self._lifeline)
            except TimeoutError:
                self._process.kill()
            self._process.wait()
        if self._lifeline:
            self._lifeline.close()

    async def _ended(self, process: "subprocess.Popen[bytes]", lifeline: Lifeline) -> None:
        """Returns when it has ended. It is killed if it does not answer."""
        while lifeline.unanswered < MAX_UNANSWERED:
            lifeline.ask()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_SECONDS):
                    while await lifeline.hear():
                        pass
                    return
        log.error("a worker does not answer, and is killed", worker=self.number, pid=process.pid)
        process.kill()
        while await lifeline.hear():
            pass

    async def _spawn(self) -> tuple["subprocess.Popen[bytes]", Lifeline]:
        self._started_at = time.monotonic()
        if self._lifeline:
            self._lifeline.close()
        self._lifeline, other_end = await Lifeline.open()
        with other_end:
            self._process = self._launch(other_end.fileno())
        return self._process, self._lifeline

    def _launch(self, lifeline: int) -> "subprocess.Popen[bytes]":
        command = (sys.executable, "-m", "deployment_pipeline", "worker", str(self.number), str(lifeline))
        with _blocked(STOP_SIGNALS):
            return subprocess.Popen(command, env=self._environment, pass_fds=(lifeline,))


async def supervise(
    count: int,
    listeners: Sequence[Listener],
    environment: Mapping[str, str],
    ready: Callable[[Sequence[Listener]], None],
    http: socket.socket | None = None,
) -> None:
    """Keep this many workers until SIGTERM or SIGINT. `ready` is called with the listeners, and their ports,
    once all of them serve. http: what the HTTP endpoint listens on, if there is one. Raises CannotListen,
    CannotStart."""
    with held(listeners) as bound:
        own = {**environment, "DP_LISTEN": ",".join(map(str, bound))}
        workers = [Worker(number, own) for number in range(1, count + 1)]
        keeping = asyncio.ensure_future(_keep(workers, lambda: ready(bound)))
        for signal_number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(signal_number, keeping.cancel)
        report = Report(
            [listener.address for listener in bound],
            lambda: not keeping.done() and _are_ready(workers),
            partial(_exposition, workers),
        )
        async with endpoint.answering(http, report):
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await keeping
            finally:
                await asyncio.gather(*(worker.stop() for worker in workers))


async def _keep(workers: Sequence[Worker], ready: Callable[[], None]) -> None:
    await workers[0].start()  # what keeps one from starting keeps all: it is said once
    try:
        async with asyncio.TaskGroup() as starting:
            for worker in workers[1:]:
                starting.create_task(worker.start())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    ready()
    await asyncio.gather(*(worker.keep() for worker in workers))


def _are_ready(workers: Sequence[Worker]) -> bool:
    """Those that serve. One that is being replaced gets no calls."""
    lifelines = [worker.lifeline for worker in workers if worker.lifeline]
    return bool(lifelines) and all(lifeline.is_ready for lifeline in lifelines)


async def _exposition(workers: Sequence[Worker]) -> str:
    asked = [(worker.number, worker.lifeline) for worker in workers if worker.lifeline]
    texts = await asyncio.gather(*(lifeline.exposition() for _, lifeline in asked))
    return merged({number: text for (number, _), text in zip(asked, texts, strict=True) if text})


@contextlib.contextmanager
def _blocked(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """A process that is started here gets these signals when it is ready for them (and unblocks them)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
