"""Coordinates deployments over gRPC. Settings are DP_* environment variables; `config` shows them."""

# ruff: noqa: PLC0415  # see `_execute`

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence

from deployment_pipeline.cli.problems import Unusable
from deployment_pipeline.release import VERSION
from deployment_pipeline.run import settings
from deployment_pipeline.run.settings import InvalidSettings, Settings
from deployment_pipeline.run.values import masked

MAX_WORKERS = 64


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
        "--secure",
        action="store_true",
        help="with --embedded: serve over TLS, to callers with a token; both are made in DP_DATA_DIR",
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
    if arguments.command == "serve" and arguments.secure and not arguments.embedded:
        parser.error("--secure belongs to --embedded")
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
    """What a command needs is loaded by it: a health check every few seconds must not load the whole
    service."""
    if arguments.command == "token":  # it needs no settings
        _token(arguments.name, arguments.group, arguments.expires_in)
        return
    config = settings.load()
    if arguments.command == "healthcheck":
        sys.exit(_healthcheck(config, arguments.service))
    if arguments.command == "config":
        print("\n".join(_config(config)))
        return
    from deployment_pipeline.cli import serving

    match arguments.command:
        case "serve":
            serving.serve(
                config,
                arguments.workers,
                is_embedded=arguments.embedded,
                is_secure=arguments.secure,
                migrates=arguments.migrates,
            )
        case "worker":
            serving.work(config, arguments.number, arguments.lifeline)
        case "migrate":
            serving.begin_log(config)
            serving.bring_up(config, finish=arguments.finish, force=arguments.force)
            print(f"the database has this release's schema{', finished' if arguments.finish else ''}")


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


def _report(problem: str) -> int:
    from deployment_pipeline import logs

    logs.text(f"deployment-pipeline: {problem}")
    return 2


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
