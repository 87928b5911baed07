"""What the text of a setting may be, and what of it may be shown."""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, TypeAdapter, ValidationError

from deployment_pipeline.edge.identity import spiffe
from deployment_pipeline.edge.identity.issuer import Issuer
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.edge.listeners import Listener, Mode

MAX_PORT = 65535
_HEADER = re.compile(r"[a-z0-9_.-]+")
_AS_PERCENT = "must have the special characters of its user name and password written as %XX"
# What may be shown of a store's URL: nothing that could hold a secret.
_HOSTS = re.compile(r"([\w.,-]|%\w\w|\[[\w:.]*\]|:\d+)*")
_SHOWN_OPTIONS = ("host", "port", "dbname")


def host_and_port(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ValueError("must be HOST:PORT, like 127.0.0.1:50051 or [::]:50051")
    if int(port) > MAX_PORT:
        raise ValueError(f"must have a port of 0 to {MAX_PORT}")
    return value


def headers(value: str) -> str:
    names = [name.strip().lower() for name in value.split(",") if name.strip()]
    if not all(_HEADER.fullmatch(name) for name in names):
        raise ValueError("must be names of metadata, separated by commas, like x-request-id; empty: none")
    return ",".join(names)


def url(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        if value and not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(f"must be a URL that begins with {' or '.join(f'{s}://' for s in schemes)}")
        if not value.isprintable():
            raise ValueError("must be one line of printable characters")
        return value

    return AfterValidator(check)


def for_libpq(value: str) -> str:
    """libpq takes what is behind the first @ or / for hosts, and what it cannot reach there it names: no part
    of a password may end up in its errors."""
    address, _, path = value.partition("://")[2].partition("/")
    hosts = address.partition("@")[2] if "@" in address else address
    if not _HOSTS.fullmatch(hosts.partition("?")[0]) or "@" in path.partition("?")[0]:
        raise ValueError(_AS_PERCENT)
    return value


def for_redis(value: str) -> str:
    if masked(value) == "***":
        raise ValueError(_AS_PERCENT)
    parts = urlsplit(value)
    try:
        parts.port  # noqa: B018  # raises ValueError, which shows it
    except ValueError:
        raise ValueError(f"must have a port of 0 to {MAX_PORT}") from None
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ValueError("must end with the number of a database, like redis://HOST:PORT/0, or without one")
    if parts.query:
        from deployment_pipeline.guard.pool import connections_to  # noqa: PLC0415  # redis takes a while to load

        connections_to(value)
    return value


def listeners(value: str) -> str:
    parts = [part.strip() for part in value.split(",")]
    for part in parts:
        mode, separator, address = part.rpartition("://")
        host_and_port(address)
        if separator and mode not in set(Mode):
            raise ValueError(
                f"must have {', '.join(f'{mode}://' for mode in Mode)} or nothing before HOST:PORT"
            )
    # Two of the same would share what arrives: some callers would meet TLS, and some would not.
    ports = [int(part.rpartition(":")[2]) for part in parts]
    if any(port and ports.count(port) > 1 for port in ports):
        raise ValueError("must name each port once")
    return ",".join(parts)


def read_listeners(value: str, mode: str) -> Sequence[Listener]:
    """mode: of those that name none."""
    parts = [part.rpartition("://") for part in value.split(",")]
    return [Listener(Mode(named or mode), address) for named, _, address in parts]


def optional_host_and_port(value: str) -> str:
    return host_and_port(value) if value else value


def trust_domain(value: str) -> str:
    if value and not spiffe.is_domain(value):
        raise ValueError("must be a name of a-z, 0-9, '.', '-' and '_', like corp.example")
    return value


def peers(value: str) -> str:
    """Who is believed: SPIFFE ids and networks."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    for part in parts:
        try:
            if part.startswith("spiffe://"):
                spiffe.check(part, trust_domain="")
            else:
                ipaddress.ip_network(part)
        except (ValueError, NotProven):
            raise ValueError(
                "must be SPIFFE ids or networks, comma-separated, like spiffe://corp/gateway or 127.0.0.0/8"
            ) from None
    return ",".join(parts)


def issuers(value: str) -> str:
    if value:
        read_issuers(value)
    return value


def read_issuers(value: str) -> Sequence[Issuer]:
    if not value:
        return ()
    try:
        found = TypeAdapter(list[Issuer]).validate_json(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"must be a JSON list of issuers: {place}: {first['msg']}".replace(": : ", ": ")
        ) from None
    names = [issuer.name for issuer in found]
    if len(set(names)) < len(names):
        raise ValueError("must have a name for each issuer that no other has")
    if len({(issuer.issuer, issuer.audience) for issuer in found}) < len(found):
        raise ValueError("must not have the same issuer and audience twice: whom would a token name?")
    return found


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
