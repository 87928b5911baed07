"""Servers as processes of their own, started by the command line."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import IO, Any, TextIO

from support.stores import ROOT, Stores

START_SECONDS = 60
STOP_SECONDS = 15
# In the log; the release before says it on standard output.
SERVING = re.compile(r'(?:"listen": "|serves gRPC on )([^"\n]+)["\n]')

METRICS = re.compile(r'"metrics": "(127\.0\.0\.1:\d+)"')

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
# So that servers do not take each other's ports.
FREE_PORTS = MappingProxyType({"DP_LISTEN": "127.0.0.1:0", "DP_METRICS_LISTEN": "127.0.0.1:0"})


class Server:
    """`deployment-pipeline serve`, with the ports that it took. log: open for reading and appending."""

    program: tuple[str, ...] = ("-m", "deployment_pipeline")
    arguments: tuple[str, ...] = ("serve",)
    ports: Mapping[str, str] = FREE_PORTS

    def __init__(self, settings: Mapping[str, str], log: TextIO | None = None) -> None:
        self.settings = {"DP_DRAIN_MS": "0", **settings}
        self.log = log
        self.process: subprocess.Popen[bytes] = None  # type: ignore[assignment]  # set by start
        self.start()

    def start(self) -> None:
        with contextlib.ExitStack() as stack:
            log = self.log or stack.enter_context(_log())
            begin = log.seek(0, os.SEEK_END)
            self.launch(log, log)
            said = self._serving(log, begin)
        # In the order of DP_LISTEN.
        self.addresses = [one.rpartition("://")[2] for one in SERVING.findall(said)[0].split(",")]
        self.address = self.addresses[0]
        self.metrics_address = "".join(METRICS.findall(said))  # empty: it has none

    def launch(self, stdout: "int | IO[Any] | None", stderr: "int | IO[Any] | None") -> None:
        """Without waiting until it serves."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DP_")}
        environment.update(self.ports)
        if self._is_of_release_before:  # it does not know this one
            del environment["DP_METRICS_LISTEN"]
        self.process = subprocess.Popen(
            [sys.executable, *self.program, *self.arguments],
            env={**environment, **self.settings},
            stdout=stdout,
            stderr=stderr,
            cwd=ROOT,
        )

    @property
    def _is_of_release_before(self) -> bool:
        return self.program == Server.program and "PYTHONPATH" in self.settings

    def _serving(self, log: TextIO, begin: int) -> str:
        """What it has said, once it says that it serves."""
        give_up_at = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up_at:
            over = self.process.poll() is not None
            log.seek(begin)
            if SERVING.search(text := log.read()):
                return text
            if over:
                break
            time.sleep(0.01)
        raise AssertionError(f"the server does not serve; it said {text!r}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Returns the exit code."""
        self.process.send_signal(how)
        return self.process.wait(STOP_SECONDS)


def lines(log: TextIO) -> list[dict[str, Any]]:
    """All that a server has logged there."""
    log.seek(0)
    return [json.loads(line) for line in log]


@contextlib.contextmanager
def _log() -> Iterator[TextIO]:
    with tempfile.TemporaryFile("a+") as file:
        # The mode alone does not say so. The process shares our place in the file, which reading moves.
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
        yield file


def free_address() -> str:
    """For a server whose log cannot be read."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def server(
    stores: Stores, settings: Mapping[str, str] = NO_SETTINGS, log: TextIO | None = None
) -> Iterator[Server]:
    own = {"DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": stores.redis_url}
    running = Server({**own, **settings}, log)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop(signal.SIGKILL)


@contextlib.contextmanager
def replicas(stores: Stores) -> Iterator[list[Server]]:
    """Two servers, which have their addresses again when they are started again."""
    quiet = {"DP_LOG_LEVEL": "error"}
    with server(stores, quiet) as one, server(stores, quiet) as other:
        for replica in (one, other):
            replica.settings["DP_LISTEN"] = replica.address
        yield [one, other]
