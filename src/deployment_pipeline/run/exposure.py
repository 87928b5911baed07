"""Who can reach the service, and whether they must say who they are: what is refused before it serves."""

import ipaddress
from collections.abc import Iterator

from deployment_pipeline.edge.listeners import Listener, Mode
from deployment_pipeline.run.settings import InvalidSettings, Settings

SPIFFE = "spiffe://"


def check(settings: Settings) -> None:
    """Raises InvalidSettings, with every problem."""
    problems = [*_of_files(settings), *_of_listeners(settings), *_of_identity(settings)]
    if problems:
        raise InvalidSettings("\n".join(problems))


def anonymous_role(settings: Settings) -> str:
    """What callers without a credential may do: none, viewer, deployer, operator or admin."""
    if settings.anonymous:
        return settings.anonymous
    return "none" if authenticates(settings) or any(_beyond_loopback(settings)) else "admin"


def authenticates(settings: Settings) -> bool:
    """Whether callers can prove who they are."""
    given = settings.tokens_file, settings.issuers, settings.xfcc_from
    return any(given) or any(_with(settings, Mode.MTLS))


def _of_files(settings: Settings) -> Iterator[str]:
    """A file without a use is a problem, too: whoever names it believes that it protects."""
    mtls, encrypted = list(_with(settings, Mode.MTLS)), list(_with(settings, Mode.TLS, Mode.MTLS))
    for name, path in (("DP_TLS_CERT", settings.tls_cert), ("DP_TLS_KEY", settings.tls_key)):
        if encrypted and not path:
            yield f"{name}: must be set for {encrypted[0]}"
        if path and not encrypted:
            yield f"{name}: no listener uses it; set DP_TLS=tls (or mtls), or write tls:// in DP_LISTEN"
    if mtls and not settings.tls_client_ca:
        yield f"DP_TLS_CLIENT_CA: must be set for {mtls[0]}"
    if settings.tls_client_ca and not mtls:
        yield "DP_TLS_CLIENT_CA: no listener uses it; set DP_TLS=mtls, or write mtls:// in DP_LISTEN"


def _of_listeners(settings: Settings) -> Iterator[str]:
    for listener in _beyond_loopback(settings):
        if listener.mode is Mode.PLAIN and not settings.insecure:
            yield (
                f"DP_LISTEN: {listener.address} is beyond loopback and without TLS; set DP_TLS=tls (or mtls),"
                " or DP_INSECURE=true if a mesh or the network protects it"
            )


def _of_identity(settings: Settings) -> Iterator[str]:
    beyond = list(_beyond_loopback(settings))
    if not authenticates(settings) and not settings.anonymous and beyond:
        yield (
            f"DP_ANONYMOUS: {beyond[0].address} is beyond loopback, and nobody there can prove who they are;"
            " set DP_TOKENS_FILE, DP_JWT_ISSUERS, DP_XFCC_FROM or DP_TLS=mtls, or say with DP_ANONYMOUS what"
            " everybody may do"
        )
    if authenticates(settings) and not settings.grants_file:
        yield "DP_GRANTS_FILE: must be set, to say what those may do who prove who they are"
    yield from _of_proxies(settings)


def _of_proxies(settings: Settings) -> Iterator[str]:
    believed = [part.startswith(SPIFFE) for part in settings.xfcc_from.split(",") if part]
    if any(believed) and not any(_with(settings, Mode.MTLS)):
        yield "DP_XFCC_FROM: proxies prove their SPIFFE ids on an mtls:// listener; add one, or name networks"
    if not all(believed) and not any(_with(settings, Mode.PLAIN, Mode.TLS)):
        yield (
            "DP_XFCC_FROM: on an mtls:// listener, proxies are known by their SPIFFE ids, not by networks;"
            " name those, or add another listener"
        )


def _with(settings: Settings, *modes: Mode) -> Iterator[Listener]:
    return (listener for listener in settings.listeners if listener.mode in modes)


def _beyond_loopback(settings: Settings) -> Iterator[Listener]:
    return (listener for listener in settings.listeners if not is_loopback(listener.host))


def is_loopback(host: str) -> bool:
    """Names are not looked up: what they mean may change."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
