"""Postgres connections: a statement for one call or for many, and what may go wrong with it."""

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import JsonbDumper
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from deployment_pipeline import deadline
from deployment_pipeline.gathering import Gathering
from deployment_pipeline.ids import RequestKey
from deployment_pipeline.postgres.statements import NO_WAIT, Row, Statement, batch
from deployment_pipeline.refusals import OutcomeUnknown, Overloaded, StoreUnavailable

CONNECT_SECONDS = 2
OPEN_SECONDS = 15
# How many calls may wait for a connection, and for how long: past that they are refused, not piled up.
MAX_WAITING = 1000
MAX_WAIT_SECONDS = 5.0
# A pool whose line is full, and that gave a connection away so recently, has a Postgres behind it.
OBTAINED_SECONDS = 1.0
# psycopg_pool doubles its pause between attempts to connect. Giving up early keeps the pause short; the
# next call, or the readiness probe, begins anew.
RECONNECT_SECONDS = 4.0
# A statement that has no answer this long after its caller's time is over loses its connection; the server
# itself ends statements (statement_timeout), so then it is silent. Never sooner than the second number.
CUT_AFTER_DEADLINE_SECONDS = 1.0
CUT_SECONDS = 3.0
CLOSE_SECONDS = 2.0
# A cursor keeps its last result until the next one: not if it is longer than this.
KEPT_ROWS = 100

# The outcomes of a function that did what it was asked for.
MADE = ("OK", "REPLAYED")
ONE_IN_PROGRESS = "dp_deployments_one_in_progress"

_SESSION = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": f"{deadline.LONGEST_CALL_SECONDS:.0f}s",
        "idle_in_transaction_session_timeout": "10s",
        "timezone": "UTC",
        # On a large table a page of history would be planned anew for every call.
        "plan_cache_mode": "force_generic_plan",
        # Each statement of a function must see what was committed while it waited.
        "default_transaction_isolation": r"read\ committed",
        "application_name": "deployment-pipeline",
    }.items()
)
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

    async def ask(self, query: bytes, values: Sequence[Any]) -> list[Row]:
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


class _Lost(Exception):
    """The statement has no answer. `executed`: whether it may have been carried out."""

    def __init__(self, executed: bool) -> None:
        self.executed = executed


class _NotReplicated(Exception):
    """It was committed here, and nowhere else for sure."""


class _Question(NamedTuple):
    """A call's part of a batch."""

    values: Sequence[Any]
    ends_at: float  # until when its caller waits, on the monotonic clock


class Database:
    """A pool of connections in autocommit. Whoever opens it closes it."""

    def __init__(self, url: str, pool_size: int, max_batch: int) -> None:
        self._max_batch = max_batch
        self._gatherings: dict[Statement, Gathering[_Question, list[Row] | None]] = {}
        self._in_use = 0
        # Postgres was away for MAX_WAIT_SECONDS: until a probe finds it back, calls are refused at once.
        self._away = False
        self._obtained_at = self._replaced_at = float("-inf")
        options = f"{conninfo_to_dict(url).get('options') or ''} {_SESSION}"
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            connection_class=Connection,
            kwargs={"autocommit": True, "prepare_threshold": 0, "options": options, **_TCP},
            min_size=pool_size,
            max_size=pool_size,
            max_waiting=MAX_WAITING,
            reconnect_timeout=RECONNECT_SECONDS,
            # A pool that has given up all its connections would wait for a call to begin anew, and refuse
            # that call while others stand in its line.
            reconnect_failed=AsyncConnectionPool.check,
            open=False,
        )

    async def open(self) -> None:
        """Connect. Raises StoreUnavailable."""
        try:
            await self._pool.open(wait=True, timeout=OPEN_SECONDS)
        except PoolTimeout as error:
            await self._pool.close()
            raise StoreUnavailable from error

    async def close(self) -> None:
        await self._pool.close(CLOSE_SECONDS)

    async def change(self, statement: Statement, values: Sequence[Any], key: RequestKey, subject: str) -> Row:
        """Call a function. Repeats once, with the same ids, if the connection breaks: the function finds
        its own work, or does it. Raises OutcomeUnknown, StoreUnavailable or Overloaded."""
        asked = (*values, key.id, key.digest)
        executed = False
        try:
            try:
                [row] = await self._ask(statement, asked)
                return row
            except _Lost as lost:
                executed = lost.executed
            [row] = await self._alone(statement, asked)
            # A refusal now does not tell whether the first one is still on its way.
            if row[0] in MADE or not executed:
                return row
        except _Lost as lost:
            executed |= lost.executed
        except _NotReplicated:
            executed = True
        except (StoreUnavailable, Overloaded):
            if not executed:
                raise
        if executed:
            raise OutcomeUnknown(subject, key.id if key.digest else "")
        raise StoreUnavailable

    async def read(
        self, statement: Statement, values: Sequence[Any] = (), *, alone: bool = False
    ) -> list[Row]:
        """Repeats once if the connection breaks. alone: in no batch. Raises StoreUnavailable, Overloaded."""
        with contextlib.suppress(_Lost):
            return await (self._alone if alone else self._ask)(statement, values)
        try:
            return await self._alone(statement, values)
        except _Lost as lost:
            raise StoreUnavailable from lost

    async def probe(self) -> None:
        """Does Postgres answer? Raises StoreUnavailable or Overloaded. If it was away, this is the call that
        waits for it."""
        try:
            async with self._connection(probes=True) as connection:
                await self._execute(connection, b"SELECT 1", (), deadline.remaining())
        except _Lost as lost:
            raise StoreUnavailable from lost

    async def _ask(self, statement: Statement, values: Sequence[Any]) -> list[Row]:
        """Together with others who ask the same at this time, if it can be."""
        if not statement.many or self._max_batch == 1:
            return await self._alone(statement, values)
        if statement not in self._gatherings:
            send = functools.partial(self._together, statement)
            self._gatherings[statement] = Gathering(send, self._max_batch)
        rows = await self._gatherings[statement].ask(_Question(values, deadline.ends_at()))
        return await self._alone(statement, values) if rows is None else rows

    async def _alone(self, statement: Statement, values: Sequence[Any]) -> list[Row]:
        async with self._connection() as connection:
            left = deadline.remaining()
            wait_ms = (max(1, int(left * 1000)),) if statement.waits else ()
            rows = await self._execute(connection, statement.one, (*values, *wait_ms), left)
            _check_replicated(connection, statement)
            return rows

    async def _together(
        self, statement: Statement, questions: Sequence[_Question]
    ) -> Sequence[list[Row] | Exception | None]:
        """None: it must be asked alone."""
        # This task belongs to no call: it may wait for a connection as long as the most patient one.
        deadline.start(max(question.ends_at for question in questions) - time.monotonic())
        no_wait = (NO_WAIT,) if statement.waits else ()
        async with self._connection() as connection:
            now = time.monotonic()
            timely = [(*question.values, *no_wait) for question in questions if question.ends_at > now]
            if not timely:
                raise Overloaded
            try:
                # It is cut when the least patient has left: then each asks alone, in its own time.
                soonest = min(question.ends_at for question in questions if question.ends_at > now)
                found = await self._execute_all(connection, statement, timely, soonest - now)
                _check_replicated(connection, statement)
            except (StoreUnavailable, psycopg.Error):
                # The server rolled all of them back, maybe because of one.
                return [None if question.ends_at > now else Overloaded() for question in questions]
        answers = map(statement.answer, found)
        return [next(answers) if question.ends_at > now else Overloaded() for question in questions]

    async def _execute_all(
        self,
        connection: Connection,
        statement: Statement,
        values: Sequence[Sequence[Any]],
        allowed_seconds: float,
    ) -> list[list[Row]]:
        """The rows for each."""
        if len(values) == 1:
            return [await self._execute(connection, statement.one, values[0], allowed_seconds)]
        found: list[list[Row]] = [[] for _ in values]
        for row in await self._execute(connection, statement.many, (batch(values),), allowed_seconds):
            found[row[0]].append(row[1:])
        return found

    @contextlib.asynccontextmanager
    async def _connection(self, *, probes: bool = False) -> AsyncIterator[Connection]:
        if self._away and not probes:
            raise StoreUnavailable
        wait = max(0.001, min(deadline.remaining(), MAX_WAIT_SECONDS))
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

    async def _execute(
        self, connection: Connection, query: bytes, values: Sequence[Any], allowed_seconds: float
    ) -> list[Row]:
        patience = max(CUT_SECONDS, allowed_seconds + CUT_AFTER_DEADLINE_SECONDS)
        cut = asyncio.get_running_loop().call_later(patience, _cut, connection)
        connection.not_replicated = False
        try:
            return await connection.ask(query, values)
        except pg.UniqueViolation as e:
            if e.diag.constraint_name != ONE_IN_PROGRESS:
                raise
            # Somebody took the slot past the row lock: judging again says who.
            raise _Lost(executed=False) from e
        except pg.ReadOnlySqlTransaction as e:
            # It is a standby by now; the primary is elsewhere.
            await self._replace(connection)
            raise _Lost(executed=False) from e
        except pg.InternalError_ as e:
            if "cache lookup failed" not in str(e):
                raise
            # The functions were installed anew at this very moment.
            raise _Lost(executed=False) from e
        except psycopg.OperationalError as e:
            if e.diag.severity_nonlocalized == "ERROR":
                # Out of time, deadlocked, disk full ...: the server says that it rolled back.
                raise StoreUnavailable from e
            # The connection is gone, and what it was asked for may have been done.
            await self._replace(connection)
            raise _Lost(executed=True) from e
        finally:
            cut.cancel()

    async def _replace(self, broken: Connection) -> None:
        """Its idle siblings are likely dead, and a repeat must not meet them. Many calls notice the same
        break: what was opened since is left alone."""
        await broken.close()
        if broken.opened_at > self._replaced_at:
            self._replaced_at = time.monotonic()
            await self._pool.drain()


def _check_replicated(connection: Connection, statement: Statement) -> None:
    """Of the change that was just made on it."""
    if statement.waits and connection.not_replicated:
        raise _NotReplicated


def _cut(connection: Connection) -> None:
    """End a connection whose server gives no sign of life: its reader sees the end of the stream."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as stream,
    ):
        stream.shutdown(socket.SHUT_RDWR)
