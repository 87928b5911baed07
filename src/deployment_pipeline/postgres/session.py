"""What a session must be like, and whether what answers at the URL can give us such sessions.

We set a session up when we open it. A pooler (PgBouncer, say) lends its own sessions, one after another, to
whoever asks; what we set there, others would find, and we would lose. So behind a pooler we set nothing: the
role must bring its settings, and the start checks that it does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from deployment_pipeline import call
from deployment_pipeline.release import LEVEL, VERSION

# A pool tries again and again; whoever starts or migrates tries once.
CONNECT_SECONDS = 2
CONNECT_ONCE_SECONDS = 5
# A pooler shows what it is within a few statements, if not always within one.
ROUNDS = 5

SETTINGS: Mapping[str, str] = {
    "client_encoding": "UTF8",
    "statement_timeout": f"{call.LONGEST_CALL_SECONDS:.0f}s",
    "idle_in_transaction_session_timeout": "10s",
    "timezone": "UTC",
    # On a large table a page of history would be planned again for every call.
    "plan_cache_mode": "force_generic_plan",
    # Each statement of a function must see what was committed while it waited.
    "default_transaction_isolation": "read committed",
}
_VALUES = ", ".join(f"('{name}', '{value}')" for name, value in SETTINGS.items())
_SET = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in SETTINGS.items())
# The first statement of a pooled and of any other connection.
READ_LEVEL = b"SELECT min_level FROM dp_installation"
SET_AND_READ_LEVEL = f"SELECT min_level, {_SET} FROM dp_installation".encode()

# The settings that are not as they must be. The value that we want is set for this statement only, which is
# how Postgres writes it.
_OTHERS = f"""
    SELECT name, quote_ident(session_user) FROM (
        SELECT name, current_setting(name) AS found, set_config(name, value, true) AS needed
        FROM (VALUES {_VALUES}) s (name, value)
    ) s WHERE found <> needed
"""

# What every connection is opened with.
PARAMETERS: Mapping[str, Any] = {
    "autocommit": True,
    "connect_timeout": CONNECT_SECONDS,
    # Whatever the role's or PGCLIENTENCODING is.
    "client_encoding": "utf8",
    # Here it wins over the URL and PGAPPNAME: `migrate --finish` looks for it.
    "application_name": f"deployment-pipeline/{VERSION}/{LEVEL}",
}

Connection = psycopg.Connection[TupleRow]


class CannotUse(Exception):
    """Postgres cannot be used as it is; the text says what to change, and holds no secret."""


@contextmanager
def explained() -> Iterator[None]:
    """What Postgres says becomes CannotUse."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise CannotUse(
            f"the role in DP_DATABASE_URL lacks a right: {words(error)}; docs/operate.md lists those that"
            " serving and migrating need"
        ) from error
    except psycopg.Error as error:
        raise CannotUse(f"Postgres cannot be used at DP_DATABASE_URL: {words(error)}") from error


def words(error: psycopg.Error) -> str:
    """What the server, or whoever could not reach it, said; in one line."""
    return " ".join((error.diag.message_primary or str(error)).split())


def connect(url: str, *, prepare_threshold: int | None = None) -> Connection:
    """For the start and for migrations. Raises CannotUse, psycopg.Error."""
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise CannotUse(
            "DP_DATABASE_URL cannot be read: an option in it is unknown, or special characters in its"
            " password are not written as %XX"
        ) from None  # the error shows parts of the URL
    # Without a level: it is no replica's, and gone in a moment.
    own = {"connect_timeout": CONNECT_ONCE_SECONDS, "application_name": "deployment-pipeline"}
    parameters = {**PARAMETERS, **own}
    connection = psycopg.connect(url, prepare_threshold=prepare_threshold, **parameters)
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return connection


def examine(url: str, *, prepares: bool) -> bool:
    """Whether sessions come from a pooler. Raises CannotUse if they are of no use to us."""
    with explained(), connect(url) as connection:
        check_encoding(connection)
        check_level(connection)
        pooled = is_pooled(connection)
        if pooled:
            _check_settings(connection)
            if prepares:
                _check_prepared_statements(url)
        return pooled


def check_encoding(connection: Connection) -> None:
    """Raises CannotUse if some text would not fit into the database."""
    encoding, database = _row(connection, "SELECT current_setting('server_encoding'), current_database()")
    if encoding != "UTF8":
        raise CannotUse(
            f'the encoding of the database "{database}" is {encoding}, which cannot hold every text: create'
            " it with ENCODING 'UTF8' TEMPLATE template0"
        )


def check_level(connection: Connection) -> None:
    """Raises CannotUse if the database holds what this release cannot read."""
    [needed] = _row(connection, READ_LEVEL.decode())
    if needed > LEVEL:
        raise CannotUse(
            f"this database needs a newer release: an upgrade to level {needed} was finished, and this"
            f" release is of level {LEVEL}, which cannot read all that is stored"
        )


def is_pooled(connection: Connection) -> bool:
    """A pooler makes up the process ids that it tells its clients."""
    return _process(connection) != connection.info.backend_pid


def changes_hands(url: str) -> bool:
    """Whether a pooler gives each transaction another session, as far as that can be seen."""
    with connect(url) as one, connect(url) as other:
        for _ in range(ROUNDS):
            # Twice, for poolers that go round; then a stranger, for those that reuse the last one.
            processes = _process(one), _process(one), _process(other)
            if processes[0] != processes[1] or processes[1] == processes[2]:
                return True
    return False


def _check_settings(connection: Connection) -> None:
    others = connection.execute(_OTHERS.encode()).fetchall()
    if others:
        commands = "; ".join(f"ALTER ROLE {role} SET {name} = '{SETTINGS[name]}'" for name, role in others)
        raise CannotUse(
            "behind a pooler, the role must bring the settings of its sessions: run these, and let the pooler"
            f" open new connections then (RECONNECT in PgBouncer's console): {commands}"
        )


def _check_prepared_statements(url: str) -> None:
    with connect(url, prepare_threshold=0) as one, connect(url, prepare_threshold=0) as other:
        try:
            for _ in range(ROUNDS):
                # As in `changes_hands`. Both names their statements alike.
                for connection, text in ((one, "one"), (one, "one"), (other, "other")):
                    if _row(connection, f"SELECT '{text}'") != (text,):
                        raise psycopg.errors.InvalidSqlStatementName
        except (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement) as error:
            raise CannotUse(
                "the pooler at DP_DATABASE_URL mixes up prepared statements: set DP_PREPARE=false, or have it"
                " keep them (PgBouncer 1.21 or later with max_prepared_statements) or pool whole sessions"
            ) from error


def _process(connection: Connection) -> int:
    [process] = _row(connection, "SELECT pg_backend_pid()")
    return int(process)


def _row(connection: Connection, query: str) -> TupleRow:
    [row] = connection.execute(query.encode()).fetchall()
    return row
