"""Postgres connections: a pool of them, and what may go wrong with a statement."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeAlias

import psycopg
import structlog
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import JsonbDumper
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from deployment_pipeline import call
from deployment_pipeline.refusals import Overloaded, StoreUnavailable
from deployment_pipeline.release import LEVEL, VERSION

Row: TypeAlias = tuple[Any, ...]

CONNECT_SECONDS = 2
CONNECT_ALL_SECONDS = 15
# How many calls may wait for a connection, and for how long: past that they are refused, not piled up.
MAX_WAITING = 1000
MAX_WAIT_SECONDS = 5.0
# A pool whose line is full, and that gave a connection away so recently, has a Postgres behind it.
OBTAINED_SECONDS = 1.0
# psycopg_pool doubles its pause between attempts to connect. Giving up early keeps the pause short; the
# next call, or the readiness probe, begins again.
RECONNECT_SECONDS = 4.0
# A statement that has no answer this long after its caller's time has run out loses its connection; the
# server itself ends statements (statement_timeout), so then it is silent. Never sooner than the second
# number.
CUT_AFTER_DEADLINE_SECONDS = 1.0
CUT_SECONDS = 3.0
CLOSE_SECONDS = 2.0
# A cursor keeps its last result until the next one: not if it is longer than this.
KEPT_ROWS = 100

ONE_IN_PROGRESS = "dp_deployments_one_in_progress"

_SESSION = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": f"{call.LONGEST_CALL_SECONDS:.0f}s",
        "idle_in_transaction_session_timeout": "10s",
        "timezone": "UTC",
        # On a large table a page of history would be planned again for every call.
        "plan_cache_mode": "force_generic_plan",
        # Each statement of a function must see what was committed while it waited.
        "default_transaction_isolation": r"read\ committed",
    }.items()
)
log = structlog.get_logger()

# An unanswered packet or a silent peer breaks a connection after about five seconds.
_TCP = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}


class Connection(psycopg.AsyncConnection[Row]):
    """One that knows its age, and whether a commit was left unreplicated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adapters.register_dumper(dict, JsonbDumper)
        self.opened_at = time.monotonic()
        self.not_replicated = False
        self._cursors: dict[bytes, psycopg.AsyncCursor[Row]] = {}
        self.add_notice_handler(self._notice)

    async def ask(self, query: bytes, values: Mapping[str, Any]) -> list[Row]:
        """Its rows. Each query keeps its cursor, which keeps what psycopg learns of its columns; binary, for
        times as text take both sides longer."""
        cursor = self._cursors.get(query)
        if cursor is None:
            cursor = self._cursors[query] = self.cursor(binary=True)
        await cursor.execute(query, values)
        rows = await cursor.fetchall()
        if len(rows) > KEPT_ROWS:
            del self._cursors[query]
        return rows

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        # A cancelled wait for a synchronous standby is reported as success with this warning.
        if notice.sqlstate == "01000" and notice.severity_nonlocalized == "WARNING":
            self.not_replicated = True


class Lost(Exception):
    """The statement has no answer. `executed`: whether it may have been carried out."""

    def __init__(self, executed: bool) -> None:
        self.executed = executed


class Connections:
    """A pool of connections in autocommit. Whoever opens it closes it."""

    def __init__(self, url: str, pool_size: int) -> None:
        self._in_use = 0
        # Postgres was away for MAX_WAIT_SECONDS: until a probe finds it back, calls are refused at once.
        self._away = False
        self._obtained_at = self._replaced_at = float("-inf")
        options = f"{conninfo_to_dict(url).get('options') or ''} {_SESSION}"
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            connection_class=Connection,
            kwargs={
                "autocommit": True,
                "prepare_threshold": 0,
                "options": options,
                # Here it wins over the URL and PGAPPNAME: `migrate --finish` looks for it.
                "application_name": f"deployment-pipeline/{VERSION}/{LEVEL}",
                **_TCP,
            },
            configure=_check_level,
            min_size=pool_size,
            max_size=pool_size,
            max_waiting=MAX_WAITING,
            reconnect_timeout=RECONNECT_SECONDS,
            # A pool that has given up all its connections would wait for a call to begin again, and refuse
            # that call while others stand in its line.
            reconnect_failed=AsyncConnectionPool.check,
            open=False,
        )

    async def open(self) -> None:
        """Connect. Raises StoreUnavailable."""
        try:
            await self._pool.open(wait=True, timeout=CONNECT_ALL_SECONDS)
        except PoolTimeout as error:
            await self._pool.close()
            raise StoreUnavailable from error

    async def close(self) -> None:
        await self._pool.close(CLOSE_SECONDS)

    async def probe(self) -> None:
        """Does Postgres answer? Raises StoreUnavailable or Overloaded. If it was away, this is the call that
        waits for it."""
        try:
            async with self.take(probes=True) as connection:
                await self.execute(connection, b"SELECT 1", {}, call.remaining())
        except Lost as lost:
            raise StoreUnavailable from lost

    @contextlib.asynccontextmanager
    async def take(self, *, probes: bool = False) -> AsyncIterator[Connection]:
        """probes: also while Postgres is known to be away. Raises StoreUnavailable or Overloaded."""
        if self._away and not probes:
            raise StoreUnavailable
        wait = max(0.001, min(call.remaining(), MAX_WAIT_SECONDS))
        started = time.monotonic()
        try:
            connection = await self._pool.getconn(wait)
        except (TooManyRequests, PoolTimeout) as error:
            # Others have connections, or got one meanwhile: then Postgres is not away, just not enough.
            meanwhile = started - (OBTAINED_SECONDS if isinstance(error, TooManyRequests) else 0)
            if self._in_use or self._obtained_at > meanwhile:
                raise Overloaded from error
            self._away |= time.monotonic() - started >= MAX_WAIT_SECONDS
            raise StoreUnavailable from error
        self._away = False
        self._obtained_at = time.monotonic()
        self._in_use += 1
        try:
            yield connection
        finally:
            self._in_use -= 1
            await self._pool.putconn(connection)

    async def execute(
        self, connection: Connection, query: bytes, values: Mapping[str, Any], allowed_seconds: float
    ) -> list[Row]:
        """Its rows. Raises Lost, StoreUnavailable (the server rolled it back) or psycopg.Error."""
        patience = max(CUT_SECONDS, allowed_seconds + CUT_AFTER_DEADLINE_SECONDS)
        cut = asyncio.get_running_loop().call_later(patience, _cut, connection)
        connection.not_replicated = False
        try:
            return await connection.ask(query, values)
        except pg.UniqueViolation as e:
            if e.diag.constraint_name != ONE_IN_PROGRESS:
                raise
            # Somebody took the slot past the row lock: the function says who when it is asked again.
            raise Lost(executed=False) from e
        except pg.ReadOnlySqlTransaction as e:
            # It has become a standby; the primary is elsewhere.
            await self._replace(connection)
            raise Lost(executed=False) from e
        except pg.InternalError_ as e:
            if "cache lookup failed" not in str(e):
                raise
            # The functions were replaced at this very moment.
            raise Lost(executed=False) from e
        except pg.UndefinedFunction as e:
            # A function under way, replaced meanwhile, called one that is gone.
            log.warning("a function of the schema is missing", error=str(e))
            raise Lost(executed=False) from e
        except psycopg.OperationalError as e:
            if e.diag.severity_nonlocalized == "ERROR":
                # Out of time, deadlocked, disk full ...: the server says that it rolled back.
                raise StoreUnavailable from e
            # The connection is gone, and what it was asked for may have been done.
            await self._replace(connection)
            raise Lost(executed=True) from e
        finally:
            cut.cancel()

    async def _replace(self, broken: Connection) -> None:
        """Its idle siblings are likely dead, and a repeat must not meet them. Many calls notice the same
        break: what was opened since is left alone."""
        await broken.close()
        if broken.opened_at > self._replaced_at:
            self._replaced_at = time.monotonic()
            await self._pool.drain()


async def _check_level(connection: Connection) -> None:
    """A connection to a database that stores what this release cannot read is of no use. (A replica that was
    cut off while somebody finished the upgrade ends here.)"""
    [(min_level,)] = await connection.ask(b"SELECT min_level FROM dp_installation", {})
    if min_level > LEVEL:
        log.error("the database needs a newer release", level=LEVEL, needed_level=min_level)
        raise psycopg.OperationalError(f"level {min_level} is needed, and this is level {LEVEL}")


def _cut(connection: Connection) -> None:
    """End a connection whose server gives no sign of life: its reader sees the end of the stream."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as stream,
    ):
        stream.shutdown(socket.SHUT_RDWR)
