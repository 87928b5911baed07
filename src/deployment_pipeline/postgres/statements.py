"""SQL statements, asked for one call or for many at a time, and what a broken connection means for them."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple, TypeAlias

import psycopg

from deployment_pipeline import call
from deployment_pipeline.gathering import Gathering
from deployment_pipeline.model import MADE, Outcome
from deployment_pipeline.postgres.connections import Connection, Connections, Lost, Row
from deployment_pipeline.refusals import Overloaded, StoreUnavailable

# In a batch a change waits for no row lock: it answers MUST_WAIT and is made alone.
NO_WAIT = -1

Values: TypeAlias = Mapping[str, Any]


class Unconfirmed(Exception):
    """A change has no answer, and may have been made."""


class Statement:
    """A SELECT that speaks of its values as the columns of a row `q`: the one of a lone call (`one`), or each
    row of a batch (`many`), whose answers begin with the place in the batch, from 0.

    types: of the values, by name. waits: it takes another one, wait_ms: for how many milliseconds it may wait
    for its pipeline's row lock; a batch passes NO_WAIT, so no change waits behind another one's lock, and
    nothing waits while it holds locks.
    """

    def __init__(self, select: str, types: Mapping[str, str], *, waits: bool = False) -> None:
        self.waits = waits
        self._select = select
        self.types = {**types, "wait_ms": "integer"} if waits else types
        columns = ", ".join(f"{name} {type}" for name, type in {"n": "integer", **self.types}.items())
        self.one = self.of(lambda name: f"%({name})s").encode()
        self.many = (
            f"SELECT q.n, r.* FROM json_to_recordset(%(batch)s::json) q ({columns})"
            f" CROSS JOIN LATERAL ({select}) r"
        ).encode()

    def of(self, value: Callable[[str], str]) -> str:
        """The text for one call, with these values."""
        if not self.types:
            return self._select
        row = ", ".join(f"{value(name)}::{type} AS {name}" for name, type in self.types.items())
        return f"SELECT r.* FROM (SELECT {row}) q CROSS JOIN LATERAL ({self._select}) r"

    def must_wait(self, rows: Sequence[Row]) -> bool:
        return self.waits and rows[0][0] == Outcome.MUST_WAIT


class _Question(NamedTuple):
    """A call's part of a batch."""

    values: Values
    ends_at: float  # until when its caller waits, on the monotonic clock


class Statements:
    """Asks them, on connections that somebody else opens and closes."""

    def __init__(self, connections: Connections, max_batch: int) -> None:
        self._connections = connections
        self._max_batch = max_batch
        self._gatherings: dict[Statement, Gathering[_Question, list[Row] | None]] = {}

    async def change(self, statement: Statement, values: Values, *, alone: bool = False) -> Row:
        """Call a function that answers one row, which begins with the outcome. If the connection breaks it is
        asked once more, with the same ids: the function finds its own work, or does it. alone: in no batch.
        Raises Unconfirmed, StoreUnavailable or Overloaded."""
        may_be_made = False
        for ask in (self._alone if alone else self._ask, self._alone):
            try:
                [row] = await ask(statement, values)
            except Lost as lost:
                may_be_made |= lost.executed
            except (StoreUnavailable, Overloaded):
                if not may_be_made:
                    raise
                break
            else:
                # A refusal now does not tell whether the first attempt is still on its way.
                if row[0] in MADE or not may_be_made:
                    return row
                break
        raise Unconfirmed if may_be_made else StoreUnavailable

    async def read(self, statement: Statement, values: Values, *, alone: bool = False) -> list[Row]:
        """Asks once more if the connection breaks. Raises StoreUnavailable or Overloaded."""
        with contextlib.suppress(Lost):
            return await (self._alone if alone else self._ask)(statement, values)
        try:
            return await self._alone(statement, values)
        except Lost as lost:
            raise StoreUnavailable from lost

    async def _ask(self, statement: Statement, values: Values) -> list[Row]:
        """In a batch with other calls that ask the same at this time."""
        if self._max_batch == 1:
            return await self._alone(statement, values)
        if statement not in self._gatherings:
            send = functools.partial(self._together, statement)
            self._gatherings[statement] = Gathering(send, self._max_batch)
        rows = await self._gatherings[statement].ask(_Question(values, call.ends_at()))
        return await self._alone(statement, values) if rows is None else rows

    async def _alone(self, statement: Statement, values: Values) -> list[Row]:
        async with self._connections.take() as connection:
            wait_ms = max(1, ceil(call.patience() * 1000))
            values = {**values, "wait_ms": wait_ms}
            return await self._execute(connection, statement, statement.one, values, call.remaining())

    async def _together(
        self, statement: Statement, questions: Sequence[_Question]
    ) -> Sequence[list[Row] | Exception | None]:
        """None: it must be asked alone."""
        # This task belongs to no call: it may wait for a connection as long as the most patient one.
        call.begin(max(question.ends_at for question in questions) - time.monotonic())
        async with self._connections.take() as connection:
            now = time.monotonic()
            timely = [question for question in questions if question.ends_at > now]
            if not timely:
                raise Overloaded
            # It is cut when the least patient has left: then each asks alone, in its own time.
            soonest = min(question.ends_at for question in timely) - now
            try:
                found = iter(await self._execute_all(connection, statement, timely, soonest))
            except (StoreUnavailable, psycopg.Error):
                # The server rolled all of them back, maybe because of one.
                return [None if question.ends_at > now else Overloaded() for question in questions]
        answers: list[list[Row] | Exception | None] = []
        for question in questions:
            if question.ends_at > now:
                rows = next(found)
                answers.append(None if statement.must_wait(rows) else rows)
            else:
                answers.append(Overloaded())
        return answers

    async def _execute_all(
        self, connection: Connection, statement: Statement, questions: Sequence[_Question], seconds: float
    ) -> list[list[Row]]:
        """The rows for each."""
        if len(questions) == 1:
            values = {**questions[0].values, "wait_ms": NO_WAIT}
            return [await self._execute(connection, statement, statement.one, values, seconds)]
        found: list[list[Row]] = [[] for _ in questions]
        values = {"batch": batch(question.values for question in questions)}
        for row in await self._execute(connection, statement, statement.many, values, seconds):
            found[row[0]].append(row[1:])
        return found

    async def _execute(
        self, connection: Connection, statement: Statement, query: bytes, values: Values, seconds: float
    ) -> list[Row]:
        rows = await self._connections.execute(connection, query, values, seconds)
        if statement.waits and connection.not_replicated:
            # It was committed here, and maybe nowhere else: asking again would only wait again.
            raise Unconfirmed
        return rows


def batch(questions: Iterable[Values]) -> str:
    """The value for `many`. JSON: it is made many times faster than Postgres's arrays."""
    rows = [{"n": n, "wait_ms": NO_WAIT, **values} for n, values in enumerate(questions)]
    return json.dumps(rows, default=_text)


def _text(value: object) -> str:
    return rf"\x{value.hex()}" if isinstance(value, bytes) else str(value)
