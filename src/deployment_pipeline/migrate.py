"""Bring a database to this release's schema: numbered migrations, then the functions.

Safe to run from several replicas at once and at every start: an advisory lock lets one through, and the
others then find nothing to do. Migrations go forward only, and each keeps the previous release working, so
replicas may be replaced one by one. Functions are installed anew when their text differs, but never by an
older release over a newer one's: a restarting old replica leaves them alone.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import psycopg
import yoyo
from psycopg.rows import TupleRow
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri

SQL = Path(__file__).parent / "sql"
CONNECT_TIMEOUT_SECONDS = 5
# Any constant will do, as long as nothing else in the database uses it as an advisory lock.
ADVISORY_LOCK = 0x64705F6D  # "dp_m"

Connection = psycopg.Connection[TupleRow]

_DROP_FUNCTIONS = """
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT oid FROM pg_proc
             WHERE pronamespace = current_schema::regnamespace AND proname LIKE 'dp\\_%'
    LOOP
        EXECUTE format('DROP FUNCTION %s', f);
    END LOOP;
END $$
"""


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
    """Apply what is missing; each step in a transaction of its own. Raises psycopg.Error."""
    with _alone(database_url) as connection:
        with _backend(database_url) as backend:
            backend.apply_migrations(backend.to_apply(yoyo.read_migrations(str(SQL / "migrations"))))
        _install_functions(connection)


def _install_functions(connection: Connection) -> None:
    texts = [path.read_text() for path in sorted((SQL / "functions").glob("*.sql"))]
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    release = [int(part) for part in version("deployment-pipeline").split(".")]
    with connection.transaction():
        outdated = connection.execute(
            "UPDATE dp_installation SET functions_digest = %(digest)s, release = %(release)s"
            " WHERE functions_digest <> %(digest)s AND release <= %(release)s::integer[]",
            {"digest": digest, "release": release},
        )
        if outdated.rowcount:
            connection.execute(_DROP_FUNCTIONS)
            for text in texts:
                connection.execute(text.encode())
