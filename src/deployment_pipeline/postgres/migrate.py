"""Bring a database to this release's schema: numbered migrations, then the functions.

Safe to run from several replicas at once and at every start: an advisory lock lets one through, and the
others then find nothing to do. Migrations go forward only, and each keeps the previous release working, so
replicas may be replaced one by one. Functions are replaced when their text differs, but never by an
older release over a newer one's: a restarting old replica leaves them alone.

What the release before could neither read nor refuse is not stored until `finish` has said that none of its
replicas is left (`release.LEVEL`). A new database is finished.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import structlog
import yoyo
from psycopg import sql
from psycopg.rows import TupleRow
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri

from deployment_pipeline.release import LEVEL, VERSION

SQL = Path(__file__).parent / "sql"
CONNECT_TIMEOUT_SECONDS = 5
# Any constant will do, as long as nothing else in the database uses it as an advisory lock.
ADVISORY_LOCK = 0x64705F6D  # "dp_m"

# A change of a table must not wait behind a long transaction: everybody else would wait behind the change.
LOCK_TIMEOUT_SECONDS = 3
TRIES = 5
# How long to wait for another migration, and when to say so.
WAIT_SECONDS = 300.0
SAY_AFTER_SECONDS = 1.0
POLL_SECONDS = 0.1

log = structlog.get_logger()

Connection = psycopg.Connection[TupleRow]

# Functions of those names, each with what changes when it is installed.
_FUNCTIONS = """
    SELECT oid::regprocedure::text, xmin::text FROM pg_proc
    WHERE pronamespace = current_schema::regnamespace AND proname = ANY (%s)
"""


# Who holds the advisory lock.
_HOLDER = """
    SELECT format('process %%s, application "%%s", since %%s', a.pid, a.application_name, a.backend_start)
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objid = %s AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# Sessions of a release whose level is below this one's.
_OLDER = """
    SELECT format('%%s at %%s', application_name, coalesce(host(client_addr), 'this machine')), count(*)
    FROM pg_stat_activity
    WHERE datname = current_database() AND application_name ~ '^deployment-pipeline/[^/]+/[0-9]+$'
      AND split_part(application_name, '/', 3)::integer < %s
    GROUP BY 1 ORDER BY 1
"""


class CannotMigrate(Exception):
    """The text says why."""


def _connect(database_url: str, options: str = "") -> Connection:
    given = psycopg.conninfo.conninfo_to_dict(database_url).get("options") or ""
    return psycopg.connect(
        database_url,
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        options=f"{given} {options}",
    )


def _backend(database_url: str) -> PostgresqlPsycopgBackend:
    class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
        # yoyo's own lock is a table row, which a killed process would leave behind; ours dies with it.
        _is_locked = True

        def connect(self, dburi: object) -> Connection:
            # libpq reads the URL: yoyo's parser does not know all that libpq does (several hosts, say).
            return _connect(database_url, options=f"-c lock_timeout={LOCK_TIMEOUT_SECONDS * 1000:.0f}")

    return Backend(parse_uri("postgresql+psycopg:///"), "_yoyo_migration")


@contextmanager
def _alone(database_url: str) -> Iterator[Connection]:
    """Holding the lock that lets one through. Raises CannotMigrate."""
    try:
        psycopg.conninfo.conninfo_to_dict(database_url)
    except psycopg.ProgrammingError:
        raise CannotMigrate(
            "DP_DATABASE_URL cannot be read: special characters in a password are written as %XX"
        ) from None
    try:
        with _connect(database_url) as connection:
            _take_lock(connection)
            yield connection  # its end gives the lock back
    except psycopg.Error as error:
        raise CannotMigrate(f"Postgres cannot be used at DP_DATABASE_URL: {error}") from error


def _take_lock(connection: Connection) -> None:
    """By asking again and again: a statement that waits would be a transaction that CREATE INDEX CONCURRENTLY
    waits for."""
    started, said = time.monotonic(), False
    while not _one(connection, "SELECT pg_try_advisory_lock(%s)", ADVISORY_LOCK):
        waited = time.monotonic() - started
        holder = _one(connection, _HOLDER, ADVISORY_LOCK) if waited > SAY_AFTER_SECONDS else None
        if waited > WAIT_SECONDS:
            raise CannotMigrate(f"another migration is under way, and does not end: {holder}")
        if holder and not said:
            log.warning("waiting for another migration", holder=holder)
            said = True
        time.sleep(POLL_SECONDS)


def _one(connection: Connection, query: str, *values: object) -> Any:
    row = connection.execute(query.encode(), values).fetchone()
    return row[0] if row else None


def migrate(database_url: str) -> None:
    """Apply what is missing; each step in a transaction of its own. Raises CannotMigrate."""
    with _alone(database_url) as connection:
        _apply(database_url)
        needed = _one(connection, "SELECT min_level FROM dp_installation")
        if needed > LEVEL:
            raise CannotMigrate(
                f"this database needs a newer release: an upgrade to level {needed} was finished, and this"
                f" release is of level {LEVEL}, which cannot read all that is stored"
            )
        _install_functions(connection)


def finish(database_url: str, *, force: bool = False) -> None:
    """No replica of an older level runs any more, and none will: let callers store what those could not read.
    force: do not look for their sessions (a pooler hides them). Raises CannotMigrate."""
    with _alone(database_url) as connection:
        older = [] if force else connection.execute(_OLDER.encode(), [LEVEL]).fetchall()
        if older:
            sessions = ", ".join(f"{count} of {who}" for who, count in older)
            raise CannotMigrate(
                f"sessions of an older release are connected: {sessions}; replace those replicas first,"
                " or add --force if they are gone and a pooler keeps their sessions"
            )
        connection.execute("UPDATE dp_installation SET min_level = greatest(min_level, %s)", [LEVEL])


def _apply(database_url: str) -> None:
    for left in reversed(range(TRIES)):
        try:
            with _backend(database_url) as backend:
                backend.apply_migrations(backend.to_apply(yoyo.read_migrations(str(SQL / "migrations"))))
            return
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if not left:
                raise CannotMigrate(
                    f"a table could not be locked within {LOCK_TIMEOUT_SECONDS} s, {TRIES} times: something"
                    " keeps a transaction open (pg_stat_activity says what); run it again"
                ) from error


def _install_functions(connection: Connection) -> None:
    texts = {path: path.read_text() for path in sorted((SQL / "functions").glob("*.sql"))}
    digest = hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()
    release = [int(number) for number in re.findall(r"\d+", VERSION)[:3]]
    with connection.transaction():
        row = connection.execute(
            "SELECT functions FROM dp_installation"
            " WHERE functions_digest <> %s AND release <= %s::integer[] FOR UPDATE",
            [digest, release],
        ).fetchone()
        if row is None:
            return
        ours: list[str] = row[0]
        names = [path.stem for path in texts] + [function.partition("(")[0] for function in ours]
        before: dict[str, str] = dict(connection.execute(_FUNCTIONS, [names]).fetchall())
        for path, text in texts.items():
            _install(connection, path.stem, text)
        after: dict[str, str] = dict(connection.execute(_FUNCTIONS, [names]).fetchall())
        installed = [function for function in after if after[function] != before.get(function)]
        for function in set(ours) & set(after) - set(installed):  # gone, or with other arguments now
            connection.execute(f"DROP FUNCTION {function}".encode())
        connection.execute(
            # A database that never had functions never had an older release: it is finished.
            "UPDATE dp_installation SET functions_digest = %s, release = %s, functions = %s,"
            " min_level = CASE WHEN release = '{}' THEN %s ELSE min_level END",
            [digest, release, installed, LEVEL],
        )


def _install(connection: Connection, name: str, text: str) -> None:
    """Replace a function in place, which calls under way do not notice; drop it first if it answers with
    something else now."""
    try:
        with connection.transaction():
            connection.execute(text.encode())
    except psycopg.errors.InvalidFunctionDefinition:
        connection.execute(sql.SQL("DROP FUNCTION {}").format(sql.Identifier(name)))
        connection.execute(text.encode())
