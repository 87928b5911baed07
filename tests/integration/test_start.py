"""What keeps Postgres from being used is said in one sentence, in the server's own words, with no secret."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from deployment_pipeline.commands import CreatePipeline
from deployment_pipeline.postgres import CannotUse, Postgres
from deployment_pipeline.postgres.migrate import migrate
from deployment_pipeline.run import embedded
from support.databases import database
from support.proxy import postgres_proxy
from support.stores import Stores, scratch_folder

SECRET = "s3cret"  # noqa: S105  # nobody's


async def refusal(url: str) -> str:
    """What migrate and the start say."""
    said = []
    with pytest.raises(CannotUse) as refused:
        migrate(url)
    said.append(str(refused.value))
    with pytest.raises(CannotUse) as refused:
        await Postgres(url, 1, 64).open()
    said.append(str(refused.value))
    assert said[0] == said[1]
    assert SECRET not in said[0]
    assert "\n" not in said[0]
    return said[0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"user": "dp_nobody"}, 'FATAL: role "dp_nobody" does not exist'),
        ({"dbname": "dp_nothing"}, 'FATAL: database "dp_nothing" does not exist'),
        ({"host": "127.0.0.1", "port": 1}, "Connection refused"),
        ({"host": "nowhere.invalid"}, "failed to resolve host 'nowhere.invalid'"),
        ({"host": "127.0.0.1,127.0.0.2", "port": 1}, "Connection refused"),
        ({"sslmode": "strict"}, 'invalid sslmode value: "strict"'),
        ({"port": "many"}, 'invalid integer value "many" for connection option "port"'),
    ],
)
async def test_whoever_refuses_is_quoted(stores: Stores, changed: dict[str, str], words: str) -> None:
    said = await refusal(make_conninfo(stores.database_url, password=SECRET, **changed))
    assert said.startswith("Postgres cannot be used at DP_DATABASE_URL: ")
    assert words in said


async def test_a_server_without_tls_is_quoted(stores: Stores) -> None:
    async with postgres_proxy(stores.database_url) as (_, url):
        postgres = Postgres(make_conninfo(url, sslmode="require", password=SECRET), 1, 64)
        with pytest.raises(CannotUse, match="server does not support SSL, but SSL was required"):
            await postgres.open()


async def test_a_wrong_password_is_quoted() -> None:
    with scratch_folder() as folder:
        server = embedded.Postgres(folder / "postgres")
        with psycopg.connect(server.url, autocommit=True) as sql:
            sql.execute("CREATE ROLE dp_secret LOGIN PASSWORD 'another'")
        server.stop()
        (folder / "postgres" / "pg_hba.conf").write_text("local all dp_secret scram-sha-256\n")
        server = embedded.Postgres(folder / "postgres")
        try:
            said = await refusal(make_conninfo(server.url, user="dp_secret", password=SECRET))
            assert 'FATAL: password authentication failed for user "dp_secret"' in said
        finally:
            server.stop()


@pytest.mark.parametrize("url", ["postgresql://db/dp?nonsense=s3cret", "postgresql://u:s3%zz@db/dp", "a=b c"])
async def test_what_cannot_be_read_is_not_shown(url: str) -> None:
    said = await refusal(url)
    assert said.startswith("DP_DATABASE_URL cannot be read: ")
    assert "s3" not in said


@pytest.fixture
def in_another_encoding(stores: Stores, request: pytest.FixtureRequest) -> Iterator[str]:
    options = f"ENCODING '{request.param}' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
    with database(stores.database_url, "dp_encoded", options) as url:
        yield url


@pytest.mark.parametrize("in_another_encoding", ["SQL_ASCII", "LATIN1"], indirect=True)
async def test_a_database_that_cannot_hold_every_text_is_refused(in_another_encoding: str) -> None:
    with pytest.raises(CannotUse, match=r"encoding of the database \"dp_encoded\" is (SQL_ASCII|LATIN1)"):
        migrate(in_another_encoding)


@pytest.mark.parametrize("in_another_encoding", ["UTF8"], indirect=True)
async def test_the_roles_encoding_does_not_matter(
    in_another_encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(in_another_encoding, autocommit=True) as sql:
        sql.execute("ALTER DATABASE dp_encoded SET client_encoding = 'LATIN1'")
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    migrate(in_another_encoding)
    postgres = Postgres(in_another_encoding, 1, 64)
    await postgres.open()
    text = "дело — ☃ 𝄞"
    await postgres.changes.make(CreatePipeline(name="shop", stages=["a"], description=text))
    pipeline = await postgres.reads.pipeline("shop")
    assert pipeline
    assert pipeline.description == text
    await postgres.close()


async def test_sessions_are_set_up_whatever_the_role_says(stores: Stores, sql: psycopg.Connection) -> None:
    """Seen from a function that one of them calls."""
    with database(stores.database_url, "dp_set_up") as url:
        migrate(url)
        with psycopg.connect(url, autocommit=True) as own:
            for setting in ("default_transaction_isolation = 'serializable'", "timezone = 'Asia/Tokyo'"):
                own.execute(f"ALTER DATABASE dp_set_up SET {setting}".encode())
            own.execute(
                "CREATE TABLE seen AS SELECT name, setting FROM pg_settings WHERE false;"
                "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " INSERT INTO seen SELECT name, setting FROM pg_settings; RETURN NULL; END $$;"
                "CREATE TRIGGER look AFTER INSERT ON dp_pipelines EXECUTE FUNCTION look()"
            )
        postgres = Postgres(url, 1, 64)
        await postgres.open()
        await postgres.changes.make(CreatePipeline(name="shop", stages=["a"]))
        await postgres.close()
        with psycopg.connect(url) as own:
            seen: dict[str, str] = dict(own.execute("SELECT name, setting FROM seen").fetchall())
    assert seen["default_transaction_isolation"] == "read committed"
    assert seen["TimeZone"] == "UTC"
    assert seen["statement_timeout"] == "10000"
    assert seen["plan_cache_mode"] == "force_generic_plan"
    assert seen["client_encoding"] == "UTF8"
