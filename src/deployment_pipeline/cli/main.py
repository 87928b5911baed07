"""Coordinates deployments over gRPC. Settings are DP_* environment variables; `config` shows them."""

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from deployment_pipeline.edge.listeners import Listener, Mode, shown
from deployment_pipeline.release import VERSION
from deployment_pipeline.run import settings
from deployment_pipeline.run.settings import InvalidSettings, Settings
from deployment_pipeline.run.values import masked

EMBEDDED = """
Embedded stores keep their data in {data_dir}/ (`make reset` starts from scratch); never use them in
production.
"""
TRY = """\
Try it from another terminal, in this folder:

  export PATH="$PWD/.venv/bin:$PATH"
  buf curl --http2-prior-knowledge --protocol grpc {url}/dp.v1.DeploymentPipeline/CreatePipeline \\
    -d '{{"name": "shop", "stages": ["build", "test", "staging", "deploy"]}}'
  buf curl --http2-prior-knowledge --protocol grpc {url}/dp.v1.DeploymentPipeline/TriggerDeployment \\
    -d '{{"pipeline_name": "shop", "version": "1.0.0", "request_id": "release-1"}}'
  buf curl --http2-prior-knowledge --protocol grpc {url}/dp.v1.DeploymentPipeline/GetHistory \\
    -d '{{"pipeline_name": "shop"}}'
"""


MAX_WORKERS = 64


class Unusable(Exception):
    """The text is for the person at the terminal; exit code 2."""


def main() -> None:
    _open_standard_files()
    parser = argparse.ArgumentParser(prog="deployment-pipeline", description=__doc__)
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="migrate the database, then serve until SIGTERM or Ctrl-C")
    serve.add_argument(
        "--embedded",
        action="store_true",
        help="start a private Postgres and Redis for those that are not set; for a first try only",
    )
    serve.add_argument(
        "--no-migrate",
        dest="migrates",
        action="store_false",
        help="change no schema, and refuse one that is not this release's",
    )
    serve.add_argument(
        "--workers",
        type=_count,
        default=1,
        metavar="N",
        help="processes that share the port, each with its own DP_POOL_SIZE connections (default 1)",
    )
    migrate = commands.add_parser("migrate", help="bring the database to this release's schema")
    migrate.add_argument(
        "--finish",
        action="store_true",
        help="end an upgrade, when no replica of the release before is left: store what those could not read",
    )
    migrate.add_argument("--force", action="store_true", help="with --finish: do not look for their sessions")
    health = commands.add_parser(
        "healthcheck", help="exit with 0 if the server on DP_LISTEN serves; asks it at DP_METRICS_LISTEN"
    )
    health.add_argument(
        "--service",
        choices=["readiness", "liveness"],
        default="readiness",
        help="readiness (default): it should get calls; liveness: its process runs",
    )
    commands.add_parser("config", help="print the settings in effect, without secrets")
    token = commands.add_parser("token", help="make a static token, and its entry for DP_TOKENS_FILE")
    token.add_argument("name", metavar="NAME", help="who it is for")
    token.add_argument(
        "--group", action="append", default=[], metavar="G", help="a group it is in; give it again for more"
    )
    token.add_argument(
        "--expires-in", type=int, metavar="DAYS", help="how long it is accepted (default: always)"
    )
    worker = commands.add_parser("worker")  # what `serve --workers` starts
    worker.add_argument("number", type=int)
    worker.add_argument("lifeline", type=int)
    arguments = parser.parse_args()
    if arguments.command == "migrate" and arguments.force and not arguments.finish:
        parser.error("--force belongs to --finish")
    # gRPC's own lines are no JSON; what matters of them is in statuses and in our log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        _execute(arguments)
    except InvalidSettings as error:
        sys.exit(_report(f"invalid settings:\n{error}"))
    except Unusable as error:
        sys.exit(_report(str(error)))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _execute(arguments: argparse.Namespace) -> None:
    if arguments.command == "token":  # it needs no settings
        _token(arguments.name, arguments.group, arguments.expires_in)
        return
    config = settings.load()
    match arguments.command:
        case "serve":
            _serve(config, arguments.embedded, arguments.workers, migrates=arguments.migrates)
        case "worker":
            _worker(config, arguments.number, arguments.lifeline)
        case "migrate":
            _log(config)
            _migrate(config, finish=arguments.finish, force=arguments.force)
            print(f"the database has this release's schema{', finished' if arguments.finish else ''}")
        case "healthcheck":
            sys.exit(_healthcheck(config, arguments.service))
        case "config":
            print("\n".join(_config(config)))


def _count(text: str) -> int:
    """Raises ValueError, from which argparse makes its message."""
    if not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"must be 1 to {MAX_WORKERS}, not {text}")
    return int(text)


def _open_standard_files() -> None:
    """If one of the first three is closed, a connection that is opened later would take its number, and get
    what is printed."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(file)


# What a command needs is imported by it: a health check every few seconds must not load the whole service.
# ruff: noqa: PLC0415


def _report(problem: str) -> int:
    from deployment_pipeline import logs

    logs.text(f"deployment-pipeline: {problem}")
    return 2


def _serve(config: Settings, embedded: bool, count: int, *, migrates: bool) -> None:
    from deployment_pipeline.run import endpoint, exposure, server, workers

    # Until the event loop takes them over, these end the process as Ctrl-C does: stores are stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    _log(config)
    exposure.check(config)
    with _embedded_stores(config) if embedded else contextlib.nullcontext(config) as complete:
        _need(complete, "database_url", "redis_url")
        if migrates:
            # An embedded Postgres has this one server: there is no other replica to wait for.
            _migrate(complete, finish=embedded and not config.database_url)
        else:
            _check(complete)

        with _unusable_explained():
            http = endpoint.bound(complete)

            def ready(listeners: Sequence[Listener]) -> None:
                _announce(complete, listeners, http, embedded)

            if count == 1:
                _run(server.serve(complete, ready, http=http))
            else:
                # Workers read the settings themselves: no secret goes from a file into an environment.
                environment = {**os.environ, **settings.environment(complete, config)}
                _run(workers.supervise(count, complete.listeners, environment, ready, http))


def _worker(config: Settings, number: int, lifeline: int) -> None:
    from deployment_pipeline import logs
    from deployment_pipeline.run import exposure, server
    from deployment_pipeline.run.lifeline import say_serving

    exposure.check(config)
    logs.configure(config.log_level, worker=number)
    with _unusable_explained():
        _run(server.serve(config, lambda _: say_serving(lifeline), lifeline))


@contextlib.contextmanager
def _unusable_explained() -> Iterator[None]:
    """What keeps a server from serving, as a text for the person at the terminal."""
    from deployment_pipeline.edge.reloading import Unreadable
    from deployment_pipeline.postgres import CannotUse
    from deployment_pipeline.refusals import StoreUnavailable
    from deployment_pipeline.run.listening import CannotListen
    from deployment_pipeline.run.workers import CannotStart

    try:
        yield
    except StoreUnavailable:
        raise Unusable("Postgres does not answer at DP_DATABASE_URL") from None
    except (CannotUse, CannotListen, Unreadable) as error:
        raise Unusable(str(error)) from None
    except CannotStart:
        raise Unusable("a worker did not start") from None


def _run(main: Coroutine[Any, Any, None]) -> None:
    if find_spec("uvloop"):  # not there on every platform
        import uvloop

        uvloop.run(main)
    else:
        asyncio.run(main)


@contextlib.contextmanager
def _embedded_stores(config: Settings) -> Iterator[Settings]:
    from deployment_pipeline.run.embedded import CannotStart, Postgres, Redis, exclusive

    with contextlib.ExitStack() as stack:
        stores = {}
        try:
            folder = stack.enter_context(exclusive(config.data_dir))
            if not config.database_url:
                postgres = Postgres(folder / "postgres")
                stack.callback(postgres.stop)
                stores["database_url"] = postgres.url
            if not config.redis_url:
                redis = Redis(folder / "redis")
                stack.callback(redis.stop)
                stores["redis_url"] = redis.url
        except CannotStart as error:
            raise Unusable(str(error)) from None
        except OSError as error:
            raise Unusable(
                f"the embedded stores cannot use {config.data_dir} (DP_DATA_DIR): {error.strerror}:"
                f" {error.filename}"
            ) from None
        yield config.model_copy(update=stores)


def _need(config: Settings, *fields: str) -> None:
    missing = [settings.variable(field) for field in fields if not getattr(config, field)]
    if missing:
        raise Unusable(
            f"{' and '.join(missing)} must be set; for a first try: deployment-pipeline serve --embedded"
        )


def _log(config: Settings) -> None:
    """Begin to log, with what was to be said of the settings."""
    import structlog

    from deployment_pipeline import logs

    logs.configure(config.log_level)
    for path in settings.exposed_files():
        structlog.get_logger().warning("everybody on this machine can read a file with secrets", path=path)


def _migrate(config: Settings, *, finish: bool, force: bool = False) -> None:
    from deployment_pipeline.postgres import migrate

    _need(config, "database_url")
    with _unusable_explained():
        migrate.migrate(config.database_url)
        if finish:
            migrate.finish(config.database_url, force=force)


def _check(config: Settings) -> None:
    from deployment_pipeline.postgres import migrate

    with _unusable_explained():
        migrate.check(config.database_url)


def _announce(
    config: Settings, listeners: Sequence[Listener], http: socket.socket | None, embedded: bool
) -> None:
    """http: what the HTTP endpoint listens on, if there is one."""
    from deployment_pipeline import logs

    listen = shown(listeners)
    metrics = f"{config.metrics_listen.rpartition(':')[0]}:{http.getsockname()[1]}" if http else None
    stores = {
        "postgres": masked(config.database_url),
        "redis": masked(config.redis_url),
    }
    logs.announce("serving", version=VERSION, listen=listen, metrics=metrics, **stores)
    if embedded:
        lines = [f"deployment-pipeline serves gRPC on {listen}"]
        lines += [f"  {name:8}  {url}" for name, url in stores.items()]
        lines += [EMBEDDED.format(data_dir=config.data_dir)]
        lines += [TRY.format(url=f"http://{one.address}") for one in listeners if one.mode is Mode.PLAIN][:1]
        greeting = "\n".join([*lines, "Ctrl-C stops it.\n\n"])
        # In a thread: if nobody reads it, the service must not wait.
        threading.Thread(target=_print, args=(greeting,), daemon=True).start()


def _print(text: str) -> None:
    """Past sys.stdout, whose lock the end of the process would wait for."""
    with contextlib.suppress(OSError):
        os.write(1, os.fsencode(text))


def _healthcheck(config: Settings, service: str) -> int:
    from deployment_pipeline.cli import healthcheck

    try:
        answer = healthcheck.check(config, service)
    except healthcheck.NobodyToAsk as error:
        raise Unusable(str(error)) from None
    print(answer)
    return 0 if answer == healthcheck.SERVING else 1


def _token(name: str, groups: Sequence[str], expires_in_days: int | None) -> None:
    from deployment_pipeline.cli import token

    try:
        made = token.make(name, groups, expires_in_days)
    except ValueError as error:
        raise Unusable(str(error)) from None
    # In this order: the token is of no use without its entry.
    print(made.entry, flush=True)
    print(made.for_person, file=sys.stderr)


def _config(config: Settings) -> Iterator[str]:
    """As an environment file that a shell can read."""
    for field, info in Settings.model_fields.items():
        value = getattr(config, field)
        name, shown = settings.variable(field), "" if value is None else str(value)
        if field in settings.SECRETS:
            shown = masked(value)
            if path := os.environ.get(settings.file_variable(field)):
                name, shown = settings.file_variable(field), path
        yield f"# {info.description}"
        text = shown.lower() if isinstance(value, bool) else shown
        yield f"{name}={shlex.quote(text) if text else ''}"
