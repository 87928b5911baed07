"""Callers whose certificate a proxy has seen: x-forwarded-client-cert, as Envoy documents and writes it.

Its values hold elements between commas, one from each proxy, the nearest proxy's last. An element holds
KEY=VALUE pairs between semicolons. A value with one of these characters is quoted; in quotes, a backslash
makes the next character an ordinary one. What callers choose, such as the subject of their certificate, may
look like any of this.
"""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from urllib.parse import unquote

from deployment_pipeline.edge.identity import spiffe
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.principal import Principal

HEADER = "x-forwarded-client-cert"
# Of headers and of peers whose reading is kept.
MAX_KEPT = 10_000
# Callers choose what stands in earlier elements. So longer headers are read each time, as they would fill the
# memory; and to read one with more pairs would take longer than the rest of a call (some 2 us each).
MAX_KEPT_CHARACTERS = 2048
MAX_PAIRS = 500

# The key and the value, and what ends them. Who joins two headers may write a blank behind the comma.
_PAIR = re.compile(r'([A-Za-z]+)=(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)"|([^",;=\\]*))(;|,[ \t]*|\Z)', re.DOTALL)


class Forwarded:
    def __init__(self, believed_from: str, trust_domain: str) -> None:
        """believed_from: SPIFFE ids, of proxies with a certificate, and networks, of those without one;
        comma-separated."""
        parts = [part for part in believed_from.split(",") if part]
        self._ids = frozenset(part for part in parts if part.startswith("spiffe://"))
        networks = [ipaddress.ip_network(part) for part in parts if part not in self._ids]
        self._is_near = lru_cache(MAX_KEPT)(partial(_is_in, networks=networks))
        self._read = partial(_read, trust_domain=trust_domain)
        self._read_once = lru_cache(MAX_KEPT)(self._read)

    def principal(
        self, metadata: Sequence[tuple[str, str | bytes]], peer: str, certified: Principal | None
    ) -> Principal | None:
        """metadata, peer: of the call's context. certified: whose certificate the connection has.
        None: there is no such header, or it is not believed. Raises NotProven."""
        values = tuple(value for key, value in metadata if key == HEADER)
        if not values or not self._believes(peer, certified):
            return None
        is_kept = sum(map(len, values)) <= MAX_KEPT_CHARACTERS
        return self._read_once(values) if is_kept else self._read(values)

    def _believes(self, peer: str, certified: Principal | None) -> bool:
        """Whoever shows a certificate is judged by it: being near lends nobody another name."""
        return certified.id in self._ids if certified else self._is_near(peer)


def _is_in(peer: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """peer: ipv4:127.0.0.1:1234, ipv6:%5B::1%5D:1234 or unix:PATH."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return False
    address = ipaddress.ip_address(unquote(rest).rpartition(":")[0].strip("[]"))
    # An IPv4 address, as a socket of both kinds may show it.
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in networks)


def _read(values: Sequence[str | bytes], trust_domain: str) -> Principal:
    texts = [_text(value) for value in values]
    if sum(text.count("=") for text in texts) > MAX_PAIRS:
        raise NotProven(f"{HEADER} has more than {MAX_PAIRS} pairs")
    elements = [element for text in texts for element in _elements(text)]
    uris = [value for key, value in elements[-1] if key == "uri"]
    if len(uris) != 1:
        raise NotProven(f"the last element of {HEADER} has {len(uris)} URIs in place of one")
    spiffe.check(uris[0], trust_domain)
    return Principal(uris[0])


def _text(value: str | bytes) -> str:
    if isinstance(value, bytes):
        raise NotProven(f"{HEADER} is not UTF-8")
    return value


def _elements(value: str) -> list[list[tuple[str, str]]]:
    """The pairs of each, with their keys in small letters. Raises NotProven."""
    elements: list[list[tuple[str, str]]] = [[]]
    at, end = 0, ";"
    while end:
        found = _PAIR.match(value, at)
        if not found:
            raise NotProven(f"{HEADER} is malformed at its character {at + 1}")
        key, quoted, bare, end = found.groups()
        elements[-1].append((key.lower(), re.sub(r"\\(.)", r"\1", quoted) if bare is None else bare))
        if "," in end:
            elements.append([])
        at = found.end()
    return elements
