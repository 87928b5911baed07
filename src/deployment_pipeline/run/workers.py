"""Several processes on one port: started, watched, replaced and stopped together.

A worker is this program again, with an event loop, connections and health of its own; the kernel gives each
new client connection to one of them (SO_REUSEPORT). The supervisor serves nothing: it holds the port, so that
no other service joins it, and the workers' lifelines, by which a worker says that it serves and learns that
its supervisor is gone.
"""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog

from deployment_pipeline.run.listening import held

# Longer than a worker's own stop may take.
STOP_SECONDS = 15.0
# A worker that ends sooner than this after its start is not replaced before.
REPLACE_SECONDS = 1.0
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
        self._lifeline = socket.socket()
        self._started_at = 0.0

    async def start(self) -> None:
        """Returns when it serves. Raises CannotStart, or OSError if there can be no process."""
        process = self._process = self._spawn()
        if not await self._next_byte():
            raise CannotStart
        log.info("a worker serves", worker=self.number, pid=process.pid)

    async def keep(self) -> None:
        """Replace it whenever it ends."""
        while self._process:
            await self._next_byte()
            code = self._process.wait()
            log.error("a worker ended, and is replaced", worker=self.number, exit_code=code)
            await asyncio.sleep(self._started_at + REPLACE_SECONDS - time.monotonic())
            try:
                await self.start()
            except (CannotStart, OSError) as error:
                log.warning("a worker could not be replaced", worker=self.number, error=str(error))

    async def stop(self) -> None:
        """By force if it must be."""
        if self._process is None:
            self._lifeline.close()
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                while await self._next_byte():
                    pass
        except TimeoutError:
            self._process.kill()
        self._process.wait()
        self._lifeline.close()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        self._started_at = time.monotonic()
        self._lifeline.close()
        self._lifeline, other_end = socket.socketpair()
        self._lifeline.setblocking(False)
        command = (sys.executable, "-m", "deployment_pipeline", "worker")
        lifeline = other_end.fileno()
        with other_end, _blocked(STOP_SIGNALS):
            return subprocess.Popen(
                [*command, str(self.number), str(lifeline)], env=self._environment, pass_fds=(lifeline,)
            )

    async def _next_byte(self) -> bytes:
        """A byte when it serves; nothing when it has ended."""
        return await asyncio.get_running_loop().sock_recv(self._lifeline, 1)


async def supervise(
    count: int, listen: str, environment: Mapping[str, str], ready: Callable[[int], None]
) -> None:
    """Keep this many workers until SIGTERM or SIGINT. `ready` is called with the port once all of them
    serve. Raises CannotListen, CannotStart."""
    with held(listen) as port:
        address = f"{listen.rpartition(':')[0]}:{port}"
        workers = [Worker(number, {**environment, "DP_LISTEN": address}) for number in range(1, count + 1)]
        keeping = asyncio.ensure_future(_keep(workers, lambda: ready(port)))
        for signal_number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(signal_number, keeping.cancel)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await keeping
        finally:
            await asyncio.gather(*(worker.stop() for worker in workers))


async def _keep(workers: Sequence[Worker], ready: Callable[[], None]) -> None:
    await workers[0].start()  # what keeps one from starting keeps all: it is said once
    await asyncio.gather(*(worker.start() for worker in workers[1:]))
    ready()
    await asyncio.gather(*(worker.keep() for worker in workers))


@contextlib.contextmanager
def _blocked(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """A process that is started here gets these signals when it is ready for them (and unblocks them)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
