"""The command line: deployment-pipeline serve | migrate | healthcheck | config."""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Coroutine, Iterator
from importlib.util import find_spec
from typing import Any

import grpc
import psycopg

from deployment_pipeline import client, logs, migrate, server, settings
from deployment_pipeline.embedded import CannotStart, Postgres, Redis
from deployment_pipeline.errors import StoreUnavailable
from deployment_pipeline.health import READINESS
from deployment_pipeline.settings import InvalidSettings, Settings

TRY = """
Try it from another terminal (the tools are in .venv/bin; grpcurl -plaintext works too):

  buf curl --http2-prior-knowledge --protocol grpc {url}/dp.v1.DeploymentPipeline/CreatePipeline \\
    -d '{{"name": "shop", "stages": ["build", "test", "staging", "deploy"]}}'
  buf curl --http2-prior-knowledge --protocol grpc {url}/dp.v1.DeploymentPipeline/TriggerDeployment \\
    -d '{{"pipeline_name": "shop", "version": "1.0.0"}}'
  buf curl --http2-prior-knowledge --protocol grpc {url}/dp.v1.DeploymentPipeline/GetHistory \\
    -d '{{"pipeline_name": "shop"}}'

Ctrl-C stops it.
"""


class Unusable(Exception):
    """The text for a person at a terminal; exit code 2."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="deployment-pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="migrate the database, then serve until SIGTERM or Ctrl-C")
    serve.add_argument(
        "--embedded",
        action="store_true",
        help="start a private Postgres and Redis for those that are not set; for a first try only",
    )
    commands.add_parser("migrate", help="bring the database to this release's schema")
    health = commands.add_parser("healthcheck", help="exit with 0 if the server on DP_LISTEN serves")
    health.add_argument("--service", default=READINESS, help="readiness (default), liveness, or a service")
    commands.add_parser("config", help="print the settings in effect, without secrets")
    arguments = parser.parse_args()
    try:
        chosen = settings.load()
        match arguments.command:
            case "serve":
                _serve(chosen, arguments.embedded)
            case "migrate":
                _migrate(_with_stores(chosen))
            case "healthcheck":
                sys.exit(_healthcheck(chosen, arguments.service))
            case "config":
                _config(chosen)
    except InvalidSettings as error:
        sys.exit(_report(f"invalid settings:\n{error}"))
    except (Unusable, CannotStart, server.CannotListen) as error:
        sys.exit(_report(str(error)))


def _report(problem: str) -> int:
    print(f"deployment-pipeline: {problem}", file=sys.stderr)
    return 2


def _serve(chosen: Settings, embedded: bool) -> None:
    logs.configure(chosen.log_level)
    with _embedded_stores(chosen) if embedded else contextlib.nullcontext(chosen) as complete:
        _migrate(_with_stores(complete))
        run = server.serve(complete, lambda port: _announce(complete, port, embedded))
        try:
            _run(run)
        except StoreUnavailable:
            raise Unusable("Postgres does not answer at DP_DATABASE_URL") from None


def _run(main: Coroutine[Any, Any, None]) -> None:
    if find_spec("uvloop"):
        import uvloop  # noqa: PLC0415  # not there on every platform

        uvloop.run(main)
    else:
        asyncio.run(main)


@contextlib.contextmanager
def _embedded_stores(chosen: Settings) -> Iterator[Settings]:
    with contextlib.ExitStack() as stack:
        stores = {}
        if not chosen.database_url:
            postgres = Postgres(chosen.data_dir / "postgres")
            stack.callback(postgres.stop)
            stores["database_url"] = postgres.url
        if not chosen.redis_url:
            redis = Redis(chosen.data_dir / "redis")
            stack.callback(redis.stop)
            stores["redis_url"] = redis.url
        yield chosen.model_copy(update=stores)


def _with_stores(chosen: Settings) -> Settings:
    missing = [
        settings.variable(field) for field in ("database_url", "redis_url") if not getattr(chosen, field)
    ]
    if missing:
        raise Unusable(
            f"{' and '.join(missing)} must be set; for a first try: deployment-pipeline serve --embedded"
        )
    return chosen


def _migrate(chosen: Settings) -> None:
    try:
        migrate.migrate(chosen.database_url)
    except psycopg.OperationalError as error:
        raise Unusable(f"Postgres does not answer at DP_DATABASE_URL: {error}") from error


def _announce(chosen: Settings, port: int, embedded: bool) -> None:
    host = chosen.listen.rpartition(":")[0]
    print(f"deployment-pipeline serves gRPC on {host}:{port}")
    print(f"  Postgres  {settings.without_secrets(chosen.database_url)}")
    print(f"  Redis     {settings.without_secrets(chosen.redis_url)}")
    if embedded:
        print(f"  Embedded stores keep their data in {chosen.data_dir}/; never use them in production.")
        print(TRY.format(url=f"http://{host}:{port}"))
    sys.stdout.flush()


def _healthcheck(chosen: Settings, service: str) -> int:
    host, _, port = chosen.listen.rpartition(":")
    if host in ("0.0.0.0", "[::]"):  # noqa: S104  # what listens everywhere is asked on loopback
        host = "127.0.0.1" if host == "0.0.0.0" else "[::1]"  # noqa: S104
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        serving = client.is_serving(channel, service)
    print("SERVING" if serving else "NOT_SERVING")
    return 0 if serving else 1


def _config(chosen: Settings) -> None:
    for field, info in Settings.model_fields.items():
        value = getattr(chosen, field)
        shown = settings.without_secrets(value) if isinstance(value, str) else value
        print(f"{settings.variable(field)}={shown}\t# {info.description}")
