"""The settings, from DP_* environment variables: the only reader of the environment."""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from deployment_pipeline.edge.identity.issuer import Issuer
from deployment_pipeline.edge.listeners import Listener
from deployment_pipeline.run import values
from deployment_pipeline.run.values import url

PREFIX = "DP_"
# Variables that belong to the tests, not to the service.
TEST_PREFIX = "DP_TEST_"
# Kubernetes puts these into every container of the namespace of a Service called `dp`.
_OF_A_SERVICE = re.compile(
    r"DP_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
# What can hold a secret may be in a file, which X_FILE names instead of X.
SECRETS = ("database_url", "redis_url")


class InvalidSettings(Exception):
    """One line per broken setting, by the name of its variable."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    listen: Annotated[str, AfterValidator(values.listeners)] = Field(
        "127.0.0.1:50051",
        description="HOST:PORT to serve on (port 0: a free one), or several MODE://HOST:PORT between commas",
    )
    tls: Literal["plain", "tls", "mtls"] = Field(
        "plain", description="how callers speak where DP_LISTEN names no mode: plain, tls or mtls"
    )
    tls_cert: Path | None = Field(None, description="file with the server's certificate and its chain (PEM)")
    tls_key: Path | None = Field(None, description="file with the certificate's private key (PEM)")
    tls_client_ca: Path | None = Field(
        None, description="file with the CAs (PEM) that sign the certificates of callers, for mtls"
    )
    trust_domain: Annotated[str, AfterValidator(values.trust_domain)] = Field(
        "", description="the SPIFFE trust domain that callers' certificates must be of; empty: any"
    )
    insecure: bool = Field(
        False,
        description="listen beyond loopback without TLS: a mesh or the network protects what is sent",
    )
    anonymous: Literal["", "none", "viewer", "deployer", "operator", "admin"] = Field(
        "",
        description="what callers without a credential may do: none, viewer, deployer, operator or admin;"
        " empty: admin if there is no authentication and every listener is on loopback, else none",
    )
    xfcc_from: Annotated[str, AfterValidator(values.peers)] = Field(
        "",
        description="whose x-forwarded-client-cert is believed: SPIFFE ids or networks, comma-separated",
    )
    jwt_issuers: Annotated[str, AfterValidator(values.issuers)] = Field(
        "", description="whose JWTs are accepted: a JSON list; see docs/security.md"
    )
    tokens_file: Path | None = Field(None, description="TOML file with the static tokens that are accepted")
    grants_file: Path | None = Field(None, description="TOML file that says who may do what")
    rate_per_principal: float = Field(
        0,
        ge=0,
        le=1_000_000,
        description="calls per second that each worker takes from one caller; 0: any",
    )
    metrics_listen: Annotated[str, AfterValidator(values.optional_host_and_port)] = Field(
        "127.0.0.1:9464",
        description="HOST:PORT of /healthz/live, /healthz/ready and /metrics, over HTTP; empty: nowhere",
    )
    database_url: Annotated[str, url("postgresql", "postgres"), AfterValidator(values.for_libpq)] = Field(
        "", description="Postgres (>= 14), as postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    )
    redis_url: Annotated[str, url("redis", "rediss", "unix"), AfterValidator(values.for_redis)] = Field(
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
    attempt_id_headers: Annotated[str, AfterValidator(values.headers)] = Field(
        "x-request-id",
        description="metadata in which proxies send the same value with every attempt, comma-separated",
    )
    reflection: bool = Field(True, description="serve gRPC reflection")
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(lambda level: level.lower() if isinstance(level, str) else level),
    ] = Field("info", description="debug, info (one line a call), warning or error")
    data_dir: Path = Field(Path(".dp"), description="where embedded stores keep their data")

    @property
    def listeners(self) -> Sequence[Listener]:
        return values.read_listeners(self.listen, self.tls)

    @property
    def issuers(self) -> Sequence[Issuer]:
        return values.read_issuers(self.jwt_issuers)


def variable(field: str) -> str:
    """The environment variable that sets a field."""
    return f"{PREFIX}{field}".upper()


def file_variable(field: str) -> str:
    """The environment variable that names a file with the value of one of SECRETS."""
    return f"{variable(field)}_FILE"


def environment(settings: Settings, loaded: Settings) -> dict[str, str]:
    """The variables that make `load` give these settings where it gave `loaded`."""
    before = loaded.model_dump(mode="json")
    now = settings.model_dump(mode="json")
    return {variable(field): str(value) for field, value in now.items() if value != before[field]}


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
    paths = [*_files().values(), os.environ.get(variable("tls_key"), "")]
    return [path for path in paths if Path(path).is_file() and os.stat(path).st_mode & stat.S_IROTH]


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
    if field == "jwt_issuers":  # long, and a URL in it may hold a password
        return f"{name}: {rule}"
    return f"{name}: {rule} (it is '{values.masked(value) if field in SECRETS else value}')"
