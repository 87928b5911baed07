"""Bring a database to this release's schema: numbered migrations, then the functions.

Safe to run from several replicas at once and at every start: on a current schema it only reads, else an
advisory lock lets one through, and the others then find nothing to do. Migrations go forward only, and each
keeps the previous release working, so replicas may be replaced one by one. Functions are replaced when their
text differs, but never by an older release over a newer one's: a restarting old replica leaves them alone.

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
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri

from deployment_pipeline.postgres import session
from deployment_pipeline.postgres.session import CannotUse, Connection
from deployment_pipeline.release import LEVEL, VERSION

SQL = Path(__file__).parent / "sql"
# Any constant will do, as long as nothing else in the database uses it as an advisory lock.
ADVISORY_LOCK = 0x64705F6D  # "dp_m"

# A change of a table must not wait behind a long transaction: everybody else would wait behind the change.
LOCK_TIMEOUT_SECONDS = 3
TRIES = 5
# How long to wait for another migration, and when to say so.
WAIT_SECONDS = 300.0
SAY_AFTER_SECONDS = 1.0
POLL_SECONDS = 0.1

NOT_CURRENT = "the database does not have this release's schema"

log = structlog.get_logger()

# Whether the tables that `_is_current` asks are there. The role may not see the schema at all (NULL).
_TABLES = """
    SELECT count(*) = 2 FROM pg_class
    WHERE relnamespace = current_schema::regnamespace AND relname IN ('_yoyo_migration', 'dp_installation')
"""
# Whether other functions than ours are installed, and none of a newer release.
_OUTDATED = "functions_digest <> %s AND release <= %s::integer[]"
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


class CannotMigrate(CannotUse):
    """The text says why."""


def _backend(database_url: str) -> PostgresqlPsycopgBackend:
    class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
        # yoyo's own lock is a table row, which a killed process would leave behind; ours dies with it.
        _is_locked = True

        def connect(self, dburi: object) -> Connection:
            # libpq reads the URL: yoyo's parser does not know all that libpq does (several hosts, say).
            connection = session.connect(database_url)
            # To build an index takes longer than a role's statements may.
            connection.execute("SET statement_timeout = 0")
            connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms'".encode())
            return connection

    return Backend(parse_uri("postgresql+psycopg:///"), "_yoyo_migration")


@contextmanager
def _alone(database_url: str) -> Iterator[Connection]:
    """In a transaction that holds the lock which lets one through. (A lock of the session would stay behind
    in a pooler.) Raises CannotUse."""
    started, said = time.monotonic(), False
    with session.explained(), session.connect(database_url) as connection:
        while True:
            with connection.transaction():
                connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                # CREATE INDEX CONCURRENTLY waits for whoever has a snapshot. A statement that waits has one;
                # so has one with parameters, until the next statement.
                if _one(connection, f"SELECT pg_try_advisory_xact_lock({ADVISORY_LOCK})"):
                    yield connection
                    return
                waited = time.monotonic() - started
                holder = _one(connection, _HOLDER, ADVISORY_LOCK) if waited > SAY_AFTER_SECONDS else None
            if waited > WAIT_SECONDS:
                raise CannotMigrate(f"another migration is under way, and does not end: {holder}")
            if holder and not said:
                log.warning("waiting for another migration", holder=holder)
                said = True
            time.sleep(POLL_SECONDS)


def _one(connection: Connection, query: str, *values: object) -> Any:
    row = connection.execute(query.encode(), values or None).fetchone()
    return row[0] if row else None


def migrate(database_url: str) -> None:
    """Apply what is missing; each step in a transaction of its own. Raises CannotUse."""
    if _is_current(database_url):
        return
    try:
        with _alone(database_url) as connection:
            if session.is_pooled(connection) and session.changes_hands(database_url):
                raise CannotMigrate(
                    "the pooler at DP_DATABASE_URL gives each transaction another session, and a migration"
                    " needs one of its own: run `deployment-pipeline migrate` with a DP_DATABASE_URL that"
                    " leads to Postgres itself"
                )
            _apply(database_url)
            session.check_level(connection)
            _install_functions(connection)
    except CannotUse as error:
        if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            raise CannotMigrate(f"{NOT_CURRENT}, and {error}") from error
        raise


def check(database_url: str) -> None:
    """Raises CannotUse if `migrate` would have something to do."""
    if not _is_current(database_url):
        raise CannotMigrate(f"{NOT_CURRENT}: run `deployment-pipeline migrate`, or leave out --no-migrate")


def finish(database_url: str, *, force: bool = False) -> None:
    """No replica of an older level runs any more, and none will: let callers store what those could not read.
    force: do not look for their sessions (a pooler hides them). Raises CannotUse."""
    with _alone(database_url) as connection:
        older = [] if force else connection.execute(_OLDER.encode(), [LEVEL]).fetchall()
        if older:
            sessions = ", ".join(f"{count} of {who}" for who, count in older)
            raise CannotMigrate(
                f"sessions of an older release are connected: {sessions}; replace those replicas first,"
                " or add --force if they are gone and a pooler keeps their sessions"
            )
        connection.execute("UPDATE dp_installation SET min_level = greatest(min_level, %s)", [LEVEL])


def _is_current(database_url: str) -> bool:
    """Whether everything is there, as far as this release knows. Raises CannotUse."""
    with session.explained(), session.connect(database_url) as connection:
        session.check_encoding(connection)
        if not _one(connection, _TABLES):
            return False
        applied = {id for (id,) in connection.execute("SELECT migration_id FROM _yoyo_migration")}
        if not applied.issuperset(path.stem for path in (SQL / "migrations").glob("*.sql")):
            return False
        session.check_level(connection)
        return not _one(connection, f"SELECT true FROM dp_installation WHERE {_OUTDATED}", *_ours())


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


def _functions() -> dict[Path, str]:
    return {path: path.read_text() for path in sorted((SQL / "functions").glob("*.sql"))}


def _ours() -> tuple[str, list[int]]:
    """The digest of our functions, and our release."""
    digest = hashlib.sha256("\0".join(_functions().values()).encode()).hexdigest()
    return digest, [int(number) for number in re.findall(r"\d+", VERSION)[:3]]


def _install_functions(connection: Connection) -> None:
    texts, (digest, release) = _functions(), _ours()
    with connection.transaction():
        row = connection.execute(
            f"SELECT functions FROM dp_installation WHERE {_OUTDATED} FOR UPDATE".encode(), [digest, release]
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
