"""The settings, from DP_* environment variables: the only reader of the environment."""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "DP_"
# Variables that belong to the tests, not to the service.
TEST_PREFIX = "DP_TEST_"
MAX_PORT = 65535
# Kubernetes puts these into every container of the namespace of a Service called `dp`.
_OF_A_SERVICE = re.compile(
    r"DP_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_HEADER = re.compile(r"[a-z0-9_.-]+")
# What can hold a secret may be in a file, which X_FILE names instead of X.
SECRETS = ("database_url", "redis_url")
_AS_PERCENT = "must have the special characters of its user name and password written as %XX"
# What may be shown of a store's URL: nothing that could hold a secret.
_HOSTS = re.compile(r"([\w.,-]|%\w\w|\[[\w:.]*\]|:\d+)*")
_SHOWN_OPTIONS = ("host", "port", "dbname")


class InvalidSettings(Exception):
    """One line per broken setting, by the name of its variable."""


def _host_and_port(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ValueError("must be HOST:PORT, like 127.0.0.1:50051 or [::]:50051")
    if int(port) > MAX_PORT:
        raise ValueError(f"must have a port of 0 to {MAX_PORT}")
    return value


def _headers(value: str) -> str:
    names = [name.strip().lower() for name in value.split(",") if name.strip()]
    if not all(_HEADER.fullmatch(name) for name in names):
        raise ValueError("must be names of metadata, separated by commas, like x-request-id; empty: none")
    return ",".join(names)


def _url(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        if value and not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(f"must be a URL that begins with {' or '.join(f'{s}://' for s in schemes)}")
        if not value.isprintable():
            raise ValueError("must be one line of printable characters")
        return value

    return AfterValidator(check)


def _for_libpq(url: str) -> str:
    """libpq takes what is behind the first @ or / for hosts, and what it cannot reach there it names: no part
    of a password may end up in its errors."""
    address, _, path = url.partition("://")[2].partition("/")
    hosts = address.partition("@")[2] if "@" in address else address
    if not _HOSTS.fullmatch(hosts.partition("?")[0]) or "@" in path.partition("?")[0]:
        raise ValueError(_AS_PERCENT)
    return url


def _for_redis(url: str) -> str:
    if masked(url) == "***":
        raise ValueError(_AS_PERCENT)
    parts = urlsplit(url)
    try:
        parts.port  # noqa: B018  # raises ValueError, which shows it
    except ValueError:
        raise ValueError(f"must have a port of 0 to {MAX_PORT}") from None
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ValueError("must end with the number of a database, like redis://HOST:PORT/0, or without one")
    if parts.query:
        from deployment_pipeline.guard.pool import connections_to  # noqa: PLC0415  # redis takes a while to load

        connections_to(url)
    return url


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    listen: Annotated[str, AfterValidator(_host_and_port)] = Field(
        "127.0.0.1:50051", description="HOST:PORT to serve on; port 0 takes a free one"
    )
    database_url: Annotated[str, _url("postgresql", "postgres"), AfterValidator(_for_libpq)] = Field(
        "", description="Postgres (>= 14), as postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    )
    redis_url: Annotated[str, _url("redis", "rediss", "unix"), AfterValidator(_for_redis)] = Field(
        "", description="Redis (>= 6.2) or Valkey, as redis://HOST:PORT/0 or unix:///path/to/socket"
    )
    pool_size: int = Field(10, ge=1, le=200, description="Postgres connections of each worker")
    prepare: bool = Field(
        True, description="use prepared statements; false behind a pooler that does not keep them"
    )
    max_batch: int = Field(
        64,
        ge=1,
        le=1000,
        description="how many concurrent calls of a kind may share a round trip to a store; 1: none",
    )
    max_streams: int = Field(
        100, ge=1, le=10_000, description="how many calls a client connection may have under way at a time"
    )
    lease_ms: int = Field(
        2000,
        ge=100,
        le=60_000,
        description="for how long Redis may refuse triggers without asking Postgres, in milliseconds",
    )
    drain_ms: int = Field(
        1000,
        ge=0,
        le=3000,
        description="for how long to go on serving after health says NOT_SERVING, in milliseconds",
    )
    require_tokens: bool = Field(
        False,
        description="refuse changes without request_id or another field that makes a repeat harmless",
    )
    attempt_id_headers: Annotated[str, AfterValidator(_headers)] = Field(
        "x-request-id",
        description="metadata in which proxies send the same value with every attempt, comma-separated",
    )
    reflection: bool = Field(True, description="serve gRPC reflection")
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(lambda level: level.lower() if isinstance(level, str) else level),
    ] = Field("info", description="debug, info (one line a call), warning or error")
    data_dir: Path = Field(Path(".dp"), description="where embedded stores keep their data")


def variable(field: str) -> str:
    """The environment variable that sets a field."""
    return f"{PREFIX}{field}".upper()


def file_variable(field: str) -> str:
    """The environment variable that names a file with the value of one of SECRETS."""
    return f"{variable(field)}_FILE"


def environment(settings: Settings, loaded: Settings) -> dict[str, str]:
    """The variables that make `load` give these settings where it gave `loaded`."""
    before = loaded.model_dump(mode="json")
    values = settings.model_dump(mode="json")
    return {variable(field): str(value) for field, value in values.items() if value != before[field]}


def load() -> Settings:
    """Read the environment, and the files that it names. Raises InvalidSettings that names every broken and
    every unknown variable."""
    known = [variable(field) for field in Settings.model_fields] + [file_variable(field) for field in SECRETS]
    problems = [
        f"{name}: there is no such setting; there are {', '.join(known)}"
        for name in sorted(os.environ)
        if name.startswith(PREFIX)
        and not name.startswith(TEST_PREFIX)
        and not _OF_A_SERVICE.fullmatch(name)
        and name not in known
    ]
    in_files: dict[str, str] = {}
    for field, path in _files().items():
        try:
            in_files[field] = _secret(field, path)
        except ValueError as error:
            problems.append(f"{file_variable(field)}: {error}")
    try:
        settings = Settings(**in_files)  # type: ignore[arg-type]  # all of SECRETS are texts
    except ValidationError as error:
        problems += [_problem(str(e["loc"][0]), e["msg"], in_files) for e in error.errors()]
    if problems:
        raise InvalidSettings("\n".join(problems))
    return settings


def exposed_files() -> list[str]:
    """Files with secrets that everybody on this machine can read."""
    return [path for path in _files().values() if os.stat(path).st_mode & stat.S_IROTH]


def _files() -> dict[str, str]:
    """The files with secrets, by field."""
    paths = {field: os.environ.get(file_variable(field)) for field in SECRETS}
    return {field: path for field, path in paths.items() if path}


def _secret(field: str, path: str) -> str:
    """Raises ValueError."""
    if os.environ.get(variable(field)):
        raise ValueError(f"{variable(field)} is set, too; use one of them")
    try:
        secret = Path(path).read_text()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{path} cannot be read: it is not UTF-8") from None
    if not secret.strip():
        raise ValueError(f"{path} is empty")
    return secret.removesuffix("\n")


def _problem(field: str, message: str, in_files: Mapping[str, str]) -> str:
    rule = message.removeprefix("Value error, ").replace("Input should be", "must be")
    name, value = variable(field), os.environ.get(variable(field), "")
    if field in in_files:
        name, value = file_variable(field), in_files[field]
    return f"{name}: {rule} (it is '{masked(value) if field in SECRETS else value}')"


def masked(url: str) -> str:
    """A store's URL as it may be shown: scheme, hosts, ports and database; *** if it cannot be read."""
    if not url:
        return ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    hosts = parts.netloc.rpartition("@")[2]
    # A password that is not encoded may end the host early: then a part of it is where a path should be.
    if not parts.scheme or not _HOSTS.fullmatch(hosts) or "@" in parts.path + parts.query + parts.fragment:
        return "***"
    options = [(name, value) for name, value in parse_qsl(parts.query) if name in _SHOWN_OPTIONS]
    query = "&".join(f"{name}={value}" for name, value in options)
    return f"{parts.scheme}://{hosts}{parts.path}{'?' + query if query else ''}"
