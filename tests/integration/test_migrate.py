from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from deployment_pipeline.postgres.migrate import migrate
from support.stores import Stores


@pytest.fixture
def empty_database(stores: Stores, sql: psycopg.Connection) -> Iterator[str]:
    sql.execute("CREATE DATABASE dp_migrate_test")
    try:
        yield make_conninfo(stores.database_url, dbname="dp_migrate_test")
    finally:
        sql.execute("DROP DATABASE dp_migrate_test WITH (FORCE)")


def functions(url: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        return dict(
            connection.execute(r"SELECT proname, prosrc FROM pg_proc WHERE proname LIKE 'dp\_%'").fetchall()
        )


def test_several_replicas_may_migrate_at_once(empty_database: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(migrate, [empty_database] * 6))
    assert "dp_trigger" in functions(empty_database)
    with psycopg.connect(empty_database) as connection:
        [count] = connection.execute("SELECT count(*) FROM dp_installation").fetchone() or [0]
    assert count == 1


def test_a_changed_function_is_replaced(empty_database: str) -> None:
    migrate(empty_database)
    ours = functions(empty_database)
    with psycopg.connect(empty_database) as connection:
        connection.execute("DROP FUNCTION dp_find_deployment")
        # With other arguments, with another result, and one that is no more.
        connection.execute("CREATE FUNCTION dp_row_lock(text) RETURNS text LANGUAGE sql AS 'SELECT $1'")
        connection.execute("DROP FUNCTION dp_is_locked")
        connection.execute(
            "CREATE FUNCTION dp_is_locked(p dp_pipelines) RETURNS text LANGUAGE sql AS $$ SELECT '' $$"
        )
        connection.execute("CREATE FUNCTION dp_old() RETURNS text LANGUAGE sql AS $$ SELECT '' $$")
        connection.execute("CREATE FUNCTION dp_strangers() RETURNS text LANGUAGE sql AS $$ SELECT '' $$")
        connection.execute(
            "UPDATE dp_installation SET functions_digest = 'another', release = '{0,0}',"
            " functions = functions || '{dp_old(),dp_row_lock(text),dp_is_locked(dp_pipelines)}'"
        )
    migrate(empty_database)
    kept = functions(empty_database)
    assert kept.pop("dp_strangers"), "what is not ours stays"
    assert kept == ours


def test_an_older_release_leaves_a_newer_ones_functions_alone(empty_database: str) -> None:
    migrate(empty_database)
    with psycopg.connect(empty_database) as connection:
        connection.execute("DROP FUNCTION dp_find_deployment")
        connection.execute("UPDATE dp_installation SET functions_digest = 'another', release = '{999}'")
    migrate(empty_database)
    assert "dp_find_deployment" not in functions(empty_database)
