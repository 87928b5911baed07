"""Databases and roles of a test's own."""

import contextlib
from collections.abc import Iterator
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from deployment_pipeline.postgres.migrate import migrate
from support.stores import ROOT

OWNER, SERVICE = "dp_owner", "dp_service"


@contextlib.contextmanager
def database(url: str, name: str, options: str = "") -> Iterator[str]:
    """An empty one; its URL."""
    with psycopg.connect(url, autocommit=True) as sql:
        sql.execute(f"CREATE DATABASE {name} {options}".encode())
        try:
            yield make_conninfo(url, dbname=name)
        finally:
            sql.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextlib.contextmanager
def two_roles(url: str) -> Iterator[tuple[str, str]]:
    """A database that OWNER has migrated and SERVICE may use, as docs/operate.md says: the URLs of both."""
    with psycopg.connect(url, autocommit=True) as sql:
        for role in (OWNER, SERVICE):
            sql.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            with database(url, "dp_two_roles", f"OWNER {OWNER}") as its_url:
                as_owner, as_service = (make_conninfo(its_url, user=role) for role in (OWNER, SERVICE))
                migrate(as_owner)
                with psycopg.connect(as_owner) as own:
                    own.execute(documented_grants().encode())
                yield as_owner, as_service
        finally:
            for role in (SERVICE, OWNER):
                sql.execute(f"DROP ROLE {role}".encode())


def documented_grants() -> str:
    rights = (ROOT / "docs" / "operate.md").read_text().partition("## Roles and rights")[2]
    return rights.partition("```sql\n")[2].partition("```")[0]


def as_url(conninfo: str) -> str:
    """What psycopg makes of a URL, as a URL again."""
    return f"postgresql://?{urlencode(conninfo_to_dict(conninfo), quote_via=quote)}"
