"""Bring a database to this release's schema: numbered migrations, then the functions.

Safe to run from several replicas at once and at every start: an advisory lock lets one through, and the
others then find nothing to do. Migrations go forward only, and each keeps the previous release working, so
replicas may be replaced one by one. Functions are replaced when their text differs, but never by an
older release over a newer one's: a restarting old replica leaves them alone.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import yoyo
from psycopg import sql
from psycopg.rows import TupleRow
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri

from deployment_pipeline.release import VERSION

SQL = Path(__file__).parent / "sql"
CONNECT_TIMEOUT_SECONDS = 5
# Any constant will do, as long as nothing else in the database uses it as an advisory lock.
ADVISORY_LOCK = 0x64705F6D  # "dp_m"

Connection = psycopg.Connection[TupleRow]

# Functions of those names, each with what changes when it is installed.
_FUNCTIONS = """
    SELECT oid::regprocedure::text, xmin::text FROM pg_proc
    WHERE pronamespace = current_schema::regnamespace AND proname = ANY (%s)
"""


class CannotMigrate(Exception):
    """The text says why."""


def _connect(database_url: str) -> Connection:
    return psycopg.connect(database_url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_SECONDS)


def _backend(database_url: str) -> PostgresqlPsycopgBackend:
    class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
        # yoyo's own lock is a table row, which a killed process would leave behind; ours dies with it.
        _is_locked = True

        def connect(self, dburi: object) -> Connection:
            # libpq reads the URL: yoyo's parser does not know all that libpq does (several hosts, say).
            return _connect(database_url)

    return Backend(parse_uri("postgresql+psycopg:///"), "_yoyo_migration")


@contextmanager
def _alone(database_url: str) -> Iterator[Connection]:
    with _connect(database_url) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_LOCK])
        try:
            yield connection
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", [ADVISORY_LOCK])


def migrate(database_url: str) -> None:
    """Apply what is missing; each step in a transaction of its own. Raises CannotMigrate."""
    try:
        psycopg.conninfo.conninfo_to_dict(database_url)
    except psycopg.ProgrammingError:
        raise CannotMigrate(
            "DP_DATABASE_URL cannot be read: special characters in a password are written as %XX"
        ) from None
    try:
        with _alone(database_url) as connection:
            with _backend(database_url) as backend:
                backend.apply_migrations(backend.to_apply(yoyo.read_migrations(str(SQL / "migrations"))))
            _install_functions(connection)
    except psycopg.Error as error:
        raise CannotMigrate(f"Postgres cannot be used at DP_DATABASE_URL: {error}") from error


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
        for function in set(ours) & set(after) - set(installed):  # no more, or with other arguments by now
            connection.execute(f"DROP FUNCTION {function}".encode())
        connection.execute(
            "UPDATE dp_installation SET functions_digest = %s, release = %s, functions = %s",
            [digest, release, installed],
        )


def _install(connection: Connection, name: str, text: str) -> None:
    """Replace a function in place, which calls under way do not notice; drop it first if it answers with
    something else by now."""
    try:
        with connection.transaction():
            connection.execute(text.encode())
    except psycopg.errors.InvalidFunctionDefinition:
        connection.execute(sql.SQL("DROP FUNCTION {}").format(sql.Identifier(name)))
        connection.execute(text.encode())
