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
from psycopg.types.json import JsonbDumper
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from deployment_pipeline import call
from deployment_pipeline.postgres import session
from deployment_pipeline.refusals import Overloaded, StoreUnavailable
from deployment_pipeline.release import LEVEL

Row: TypeAlias = tuple[Any, ...]

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
# Only a change can tell that the disk is full. When one could not be made for that, readiness says no for so
# long; then the next change tells.
FULL_SECONDS = 10.0
# A cursor keeps its last result until the next one: not if it is longer than this.
KEPT_ROWS = 100

# A standby is read-only, too.
_READ_ONLY = b"SELECT current_setting('transaction_read_only')"

ONE_IN_PROGRESS = "dp_deployments_one_in_progress"

log = structlog.get_logger()

# An unanswered packet or a silent peer breaks a connection after about five seconds.
_TCP = {
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

    def __init__(self, url: str, pool_size: int, *, prepares: bool = True) -> None:
        self._in_use = 0
        # Postgres was away for MAX_WAIT_SECONDS: until a probe finds it back, calls are refused at once.
        self._away = False
        self._obtained_at = self._replaced_at = self._full_at = float("-inf")
        self._url, self._pool_size, self._prepares = url, pool_size, prepares
        self._pooled = False  # `open` finds out
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            connection_class=Connection,
            kwargs={**session.PARAMETERS, "prepare_threshold": 0 if prepares else None, **_TCP},
            configure=self._configure,
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
        """Connect. Raises CannotUse."""
        self._pooled = await asyncio.to_thread(session.examine, self._url, prepares=self._prepares)
        await self._pool.open()
        opened: list[Connection] = []
        give_up_at = time.monotonic() + CONNECT_ALL_SECONDS
        try:
            while len(opened) < self._pool_size:
                opened.append(await self._pool.getconn(give_up_at - time.monotonic()))
        except PoolTimeout:
            # While those are held, one more shows what is in the way.
            await asyncio.to_thread(self._explain, len(opened))
        finally:
            for connection in opened:
                await self._pool.putconn(connection)
            if len(opened) < self._pool_size:
                await self._pool.close()

    def _explain(self, opened: int) -> None:
        problem = (
            f"Postgres gives {opened} of the {self._pool_size} connections that each worker opens"
            " (DP_POOL_SIZE)"
        )
        try:
            session.examine(self._url, prepares=self._prepares)
        except session.CannotUse as error:
            raise session.CannotUse(f"{problem}: {error}") from error
        raise session.CannotUse(f"{problem}, and no more within {CONNECT_ALL_SECONDS} s")

    async def _configure(self, connection: Connection) -> None:
        """A connection to a database that stores what this release cannot read is of no use. (A replica that
        was cut off while somebody finished the upgrade ends here.)"""
        query = session.READ_LEVEL if self._pooled else session.SET_AND_READ_LEVEL
        [(min_level, *_)] = await connection.ask(query, {})
        if min_level > LEVEL:
            log.error("the database needs a newer release", level=LEVEL, needed_level=min_level)
            raise psycopg.OperationalError(f"level {min_level} is needed, and this is level {LEVEL}")

    async def close(self) -> None:
        await self._pool.close(CLOSE_SECONDS)

    async def probe(self) -> None:
        """Can changes be made? Raises StoreUnavailable or Overloaded. If Postgres was away, this is the call
        that waits for it."""
        if time.monotonic() < self._full_at + FULL_SECONDS:
            raise StoreUnavailable
        # Servers and balancers cut idle connections, and the primary may be elsewhere by now: a new
        # connection is asked before the answer is no.
        for is_new in (False, True):
            with contextlib.suppress(Lost):
                async with self.take(probes=True) as connection:
                    [(read_only,)] = await self.execute(connection, _READ_ONLY, {}, call.remaining())
                    if read_only == "off":
                        return
                    if not is_new:
                        await self._replace(connection)
        raise StoreUnavailable

    @contextlib.asynccontextmanager
    async def take(self, *, probes: bool = False) -> AsyncIterator[Connection]:
        """probes: also while Postgres is known to be away. Raises StoreUnavailable or Overloaded."""
        if self._away and not probes:
            raise StoreUnavailable
        wait = max(0.001, min(call.patience(), MAX_WAIT_SECONDS))
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
        except psycopg.Error as error:
            if meaning := await self._meaning(error, connection):
                raise meaning from error
            raise
        finally:
            cut.cancel()

    async def _meaning(self, error: psycopg.Error, connection: Connection) -> Exception | None:
        """What to raise for it; None: it is a bug."""
        match error:
            case pg.UniqueViolation() if error.diag.constraint_name == ONE_IN_PROGRESS:
                # Somebody took the slot past the row lock: the function says who when it is asked again.
                return Lost(executed=False)
            case pg.ReadOnlySqlTransaction():
                # It has become a standby; the primary is elsewhere.
                await self._replace(connection)
                return Lost(executed=False)
            case pg.InternalError_() if "cache lookup failed" in str(error):
                # The functions were replaced at this very moment.
                return Lost(executed=False)
            case pg.UndefinedFunction():
                # A function under way, replaced meanwhile, called one that is gone.
                log.warning("a function of the schema is missing", error=str(error))
                return Lost(executed=False)
            case pg.LockNotAvailable():
                # Others held the pipeline's row for as long as the call could wait.
                return Overloaded()
            case psycopg.OperationalError(diag=diag) if diag.severity_nonlocalized == "ERROR":
                # Out of time, deadlocked, disk full ...: the server says that it rolled back.
                if isinstance(error, pg.DiskFull):
                    self._full_at = time.monotonic()
                return StoreUnavailable()
            case psycopg.OperationalError():
                # The connection is gone, and what it was asked for may have been done.
                await self._replace(connection)
                return Lost(executed=True)
        return None

    async def _replace(self, broken: Connection) -> None:
        """Its idle siblings are likely dead, and a repeat must not meet them. Many calls notice the same
        break: what was opened since is left alone."""
        await broken.close()
        if broken.opened_at > self._replaced_at:
            self._replaced_at = time.monotonic()
            await self._pool.drain()


def _cut(connection: Connection) -> None:
    """End a connection whose server gives no sign of life: its reader sees the end of the stream."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as stream,
    ):
        stream.shutdown(socket.SHUT_RDWR)
