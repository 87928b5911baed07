"""Servers as processes of their own, started by the command line."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TextIO

from support.stores import ROOT, Stores

STOP_SECONDS = 15

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class Server:
    """`deployment-pipeline serve`, with the port that it took."""

    program: tuple[str, ...] = ("-m", "deployment_pipeline")
    arguments: tuple[str, ...] = ("serve",)

    def __init__(self, settings: Mapping[str, str], log: TextIO | None = None) -> None:
        self.settings = {"DP_LISTEN": "127.0.0.1:0", "DP_DRAIN_MS": "0", **settings}
        self.log = log
        self.process: subprocess.Popen[str] = None  # type: ignore[assignment]  # set by start
        self.start()

    def start(self) -> None:
        if self.process and self.process.stdout:
            self.process.stdout.close()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DP_")}
        self.process = subprocess.Popen(
            [sys.executable, *self.program, *self.arguments],
            env={**environment, **self.settings},
            stdout=subprocess.PIPE,
            stderr=self.log or subprocess.DEVNULL,
            cwd=ROOT,
            text=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:\d+", line)
        assert found, f"the server printed {line!r}"
        self.address = found[0]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Returns the exit code."""
        self.process.send_signal(how)
        code = self.process.wait(STOP_SECONDS)
        if self.process.stdout:
            self.process.stdout.close()
        return code


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
