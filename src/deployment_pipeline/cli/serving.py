"""The commands that serve, and what must be there before: stores, a schema, files."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Coroutine, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog

from deployment_pipeline import logs
from deployment_pipeline.cli import greeting, secure
from deployment_pipeline.cli.problems import Unusable
from deployment_pipeline.edge.listeners import Listener, shown
from deployment_pipeline.edge.reloading import Unreadable
from deployment_pipeline.postgres import CannotUse, migrate
from deployment_pipeline.refusals import StoreUnavailable
from deployment_pipeline.release import VERSION
from deployment_pipeline.run import embedded, endpoint, exposure, server, settings, workers
from deployment_pipeline.run.lifeline import say_serving
from deployment_pipeline.run.listening import CannotListen
from deployment_pipeline.run.settings import Settings
from deployment_pipeline.run.values import masked

log = structlog.get_logger()


def serve(
    config: Settings, count: int, *, is_embedded: bool = False, is_secure: bool = False, migrates: bool = True
) -> None:
    """Until SIGTERM or Ctrl-C. count: of workers. Raises Unusable, InvalidSettings."""
    # Until the event loop takes them over, these end the process as Ctrl-C does: stores are stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    begin_log(config)
    folder = config.data_dir / "secure" if is_secure else None
    chosen = _secured(config, folder) if folder else config
    exposure.check(chosen)
    with _embedded_stores(chosen) if is_embedded else contextlib.nullcontext(chosen) as complete:
        _need(complete, "database_url", "redis_url")
        if migrates:
            # An embedded Postgres has this one server: there is no other replica to wait for.
            bring_up(complete, finish=is_embedded and not config.database_url)
        else:
            with _explained():
                migrate.check(complete.database_url)
        with _explained():
            http = endpoint.bound(complete)

            def ready(listeners: Sequence[Listener]) -> None:
                _announce(complete, listeners, http)
                if is_embedded:
                    _greet(complete, listeners, folder)

            if count == 1:
                _run(server.serve(complete, ready, http=http))
            else:
                # Workers read the settings themselves: no secret goes from a file into an environment.
                environment = {**os.environ, **settings.environment(complete, config)}
                _run(workers.supervise(count, complete.listeners, environment, ready, http))


def work(config: Settings, number: int, lifeline: int) -> None:
    """As a worker of `serve`, with that number. lifeline: see `run.lifeline`."""
    exposure.check(config)
    logs.configure(config.log_level, worker=number)
    with _explained():
        _run(server.serve(config, lambda _: say_serving(lifeline), lifeline))


def begin_log(config: Settings) -> None:
    """With what was to be said of the settings."""
    logs.configure(config.log_level)
    for path in settings.exposed_files():
        log.warning("everybody on this machine can read a file with secrets", path=path)


def bring_up(config: Settings, *, finish: bool, force: bool = False) -> None:
    """The database, to this release's schema. Raises Unusable."""
    _need(config, "database_url")
    with _explained():
        migrate.migrate(config.database_url)
        if finish:
            migrate.finish(config.database_url, force=force)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What keeps a server from serving, as a text for people."""
    try:
        yield
    except StoreUnavailable:
        raise Unusable("Postgres does not answer at DP_DATABASE_URL") from None
    except (CannotUse, CannotListen, Unreadable) as error:
        raise Unusable(str(error)) from None
    except workers.CannotStart:
        raise Unusable("a worker did not start") from None


def _run(main: Coroutine[Any, Any, None]) -> None:
    if find_spec("uvloop"):  # not there on every platform
        import uvloop  # noqa: PLC0415

        uvloop.run(main)
    else:
        asyncio.run(main)


@contextlib.contextmanager
def _embedded_stores(config: Settings) -> Iterator[Settings]:
    with contextlib.ExitStack() as stack:
        stores = {}
        try:
            folder = stack.enter_context(embedded.exclusive(config.data_dir))
            if not config.database_url:
                postgres = embedded.Postgres(folder / "postgres")
                stack.callback(postgres.stop)
                stores["database_url"] = postgres.url
            if not config.redis_url:
                redis = embedded.Redis(folder / "redis")
                stack.callback(redis.stop)
                stores["redis_url"] = redis.url
        except embedded.CannotStart as error:
            raise Unusable(str(error)) from None
        except OSError as error:
            raise Unusable(
                f"the embedded stores cannot use {config.data_dir} (DP_DATA_DIR): {error.strerror}:"
                f" {error.filename}"
            ) from None
        yield config.model_copy(update=stores)


def _secured(config: Settings, folder: Path) -> Settings:
    given = [settings.variable(field) for field in secure.FIELDS if field in config.model_fields_set]
    if given:
        raise Unusable(f"--secure makes these files itself: unset {', '.join(given)}, or leave it out")
    try:
        return config.model_copy(update=secure.prepare(folder))
    except OSError as error:
        raise Unusable(f"{error.filename} cannot be written (DP_DATA_DIR): {error.strerror}") from None


def _need(config: Settings, *fields: str) -> None:
    missing = [settings.variable(field) for field in fields if not getattr(config, field)]
    if missing:
        raise Unusable(
            f"{' and '.join(missing)} must be set; for a first try: deployment-pipeline serve --embedded"
        )


def _announce(config: Settings, listeners: Sequence[Listener], http: socket.socket | None) -> None:
    """http: what the HTTP endpoint listens on, if there is one."""
    metrics = f"{config.metrics_listen.rpartition(':')[0]}:{http.getsockname()[1]}" if http else None
    logs.announce("serving", version=VERSION, listen=shown(listeners), metrics=metrics, **_stores(config))
    role = exposure.anonymous_role(config)
    if not exposure.authenticates(config):
        event = "there is no authentication: nobody is asked who they are"
        logs.announce(event, level="warning", everybody_is=role)
    elif role != "none":
        event = "callers without a credential are let in (DP_ANONYMOUS)"
        logs.announce(event, level="warning", they_are=role)


def _greet(config: Settings, listeners: Sequence[Listener], folder: Path | None) -> None:
    text = greeting.text(listeners[0], _stores(config), config.data_dir, folder)
    # In a thread: if nobody reads it, the service must not wait.
    threading.Thread(target=_print, args=(text,), daemon=True).start()


def _stores(config: Settings) -> dict[str, str]:
    return {"postgres": masked(config.database_url), "redis": masked(config.redis_url)}


def _print(text: str) -> None:
    """Past sys.stdout, whose lock the end of the process would wait for."""
    with contextlib.suppress(OSError):
        os.write(1, os.fsencode(text))
