"""What the release before could not read is refused until an operator says that none of it runs."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from deployment_pipeline import commands
from deployment_pipeline.commands import CreatePipeline
from deployment_pipeline.model import Outcome
from deployment_pipeline.postgres import CannotUse, Postgres, migrate
from deployment_pipeline.postgres.changes import CHANGES
from deployment_pipeline.refusals import StoreUnavailable, UpgradeNotFinished
from deployment_pipeline.release import LEVEL, VERSION
from support.stores import Stores


@dataclass(frozen=True, slots=True, kw_only=True)
class Newer(CreatePipeline):
    """A command that the release before could not have read."""

    @property
    def level(self) -> int:
        return LEVEL + 1


@pytest.fixture
def database(stores: Stores, sql: psycopg.Connection) -> Iterator[str]:
    sql.execute("CREATE DATABASE dp_finish_test")
    try:
        url = make_conninfo(stores.database_url, dbname="dp_finish_test")
        migrate.migrate(url)
        yield url
    finally:
        sql.execute("DROP DATABASE dp_finish_test WITH (FORCE)")


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    opened = Postgres(database, 1, 64)
    await opened.open()
    yield opened
    await opened.close()


async def test_a_new_database_is_finished(postgres: Postgres) -> None:
    assert await postgres.reads.min_level() == LEVEL
    decision = await postgres.changes.make(CreatePipeline(name="shop", stages=["a"]))
    assert decision.outcome is Outcome.OK


async def test_what_needs_the_next_level_waits_for_finish(
    postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHANGES, Newer, CHANGES[commands.CreatePipeline])
    asked = Newer(name="shop", stages=["a"])
    with pytest.raises(UpgradeNotFinished, match="migrate --finish"):
        await postgres.changes.make(asked)
    assert await postgres.reads.pipeline("shop") is None
    monkeypatch.setattr(migrate, "LEVEL", LEVEL + 1)
    with pytest.raises(migrate.CannotMigrate, match=f"1 of deployment-pipeline/.*/{LEVEL} at "):
        migrate.finish(database)
    migrate.finish(database, force=True)
    assert (await postgres.changes.make(asked)).outcome is Outcome.OK


def test_finish_waits_for_no_session_of_this_release_and_of_nobody_else(database: str) -> None:
    names = (f"deployment-pipeline/9.9.9/{LEVEL}", "deployment-pipeline", "psql", "deployment-pipeline/1/x")
    sessions = [psycopg.connect(database, application_name=name) for name in names]
    migrate.finish(database)
    for session in sessions:
        session.close()


async def test_a_database_finished_by_a_newer_release_takes_no_connection_of_this_one(
    database: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployment_pipeline.postgres.connections.MAX_WAIT_SECONDS", 0.5)
    with psycopg.connect(database, autocommit=True) as sql:
        sql.execute("UPDATE dp_installation SET min_level = %s", (LEVEL + 1,))
        sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with capture_logs() as lines, pytest.raises(StoreUnavailable):
        await postgres.reads.pipeline("shop")
    assert {line["event"] for line in lines} == {"the database needs a newer release"}
    late = Postgres(database, 1, 64)
    with pytest.raises(CannotUse, match="needs a newer release"):
        await late.open()


@pytest.mark.parametrize("outside", ["url", "environment"])
async def test_a_sessions_name_cannot_be_overridden(
    database: str, monkeypatch: pytest.MonkeyPatch, outside: str
) -> None:
    """`migrate --finish` looks for it."""
    if outside == "url":
        database = make_conninfo(database, application_name="shop")
    else:
        monkeypatch.setenv("PGAPPNAME", "shop")
    opened = Postgres(database, 1, 64)
    await opened.open()
    with psycopg.connect(database, application_name="test") as sql:
        names = sql.execute(
            "SELECT DISTINCT application_name FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    await opened.close()
    start = ("deployment-pipeline",)  # may not quite be gone
    assert {*names} - {start} == {(f"deployment-pipeline/{VERSION}/{LEVEL}",)}


def test_finish_never_goes_back(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "LEVEL", LEVEL + 1)
    migrate.finish(database)
    monkeypatch.setattr(migrate, "LEVEL", LEVEL)
    migrate.finish(database)
    with pytest.raises(CannotUse, match="needs a newer release"):
        migrate.migrate(database)
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT min_level FROM dp_installation").fetchone() == (LEVEL + 1,)


def test_a_migration_does_not_wait_behind_a_long_transaction_for_ever(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(migrate, "TRIES", 2)
    with psycopg.connect(database, autocommit=True) as sql:
        sql.execute("DELETE FROM _yoyo_migration WHERE migration_id = '0004_min_level'")
        sql.execute("ALTER TABLE dp_installation DROP COLUMN min_level")
        with psycopg.connect(database) as long:
            long.execute("SELECT id FROM dp_installation")
            with pytest.raises(migrate.CannotMigrate, match="could not be locked"):
                migrate.migrate(database)
        migrate.migrate(database)
        assert sql.execute("SELECT min_level FROM dp_installation").fetchone() == (1,)


def test_migrate_says_whom_it_waits_for_and_gives_up(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(migrate, "SAY_AFTER_SECONDS", 0.0)
    with psycopg.connect(database, application_name="somebody", autocommit=True) as other:
        other.execute("UPDATE dp_installation SET functions_digest = 'another'")
        other.execute("SELECT pg_advisory_lock(%s)", [migrate.ADVISORY_LOCK])
        with pytest.raises(migrate.CannotMigrate, match=r'another migration is under way.*"somebody"'):
            migrate.migrate(database)
    migrate.migrate(database)


def test_a_killed_build_of_an_index_is_built_again(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as sql:
        sql.execute("DELETE FROM _yoyo_migration WHERE migration_id = '0007_ended'")
        ours = "WHERE indexrelid = 'dp_deployments_ended'::regclass"
        sql.execute(f"UPDATE pg_index SET indisvalid = false {ours}".encode())
        migrate.migrate(database)
        valid = sql.execute(f"SELECT indisvalid FROM pg_index {ours}".encode()).fetchone()
    assert valid == (True,)
