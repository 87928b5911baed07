"""A Postgres and a Redis for one test run: given by DP_TEST_*_URL, or embedded."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import psycopg

from deployment_pipeline.postgres.migrate import migrate
from deployment_pipeline.run.embedded import Postgres, Redis

RedisKey: TypeAlias = Callable[[str, str], str]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stores:
    database_url: str
    redis_url: str


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder inside the project, gone afterwards."""
    base = ROOT / ".dp"
    base.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=base))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def stores() -> Iterator[Stores]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        database_url = os.environ.get("DP_TEST_DATABASE_URL")
        if not database_url:
            postgres = Postgres(folder / "postgres")
            stack.callback(postgres.stop)
            database_url = postgres.url
        redis_url = os.environ.get("DP_TEST_REDIS_URL")
        if not redis_url:
            redis = Redis(folder / "redis")
            stack.callback(redis.stop)
            redis_url = redis.url
        migrate(database_url)
        yield Stores(database_url, redis_url)


def redis_keys(database_url: str) -> RedisKey:
    """The names of this installation's keys, by "active" or "lease" and the pipeline's name."""
    with psycopg.connect(database_url) as connection:
        [(installation,)] = connection.execute("SELECT id FROM dp_installation").fetchall()
    return lambda kind, pipeline: f"dp:{kind}:{{{pipeline}}}:{installation}"


def next_transaction_id(sql: psycopg.Connection) -> int:
    row = sql.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
    assert row
    return int(row[0])
