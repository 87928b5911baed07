"""An issuer of JWTs: its keys, its tokens, and an https server on loopback that publishes its key set."""

import asyncio
import contextlib
import json
import ssl
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from deployment_pipeline.edge.identity.issuer import Issuer
from deployment_pipeline.edge.identity.keys import KeyUrl

LIFETIME_SECONDS = 300


@cache
def rsa_key() -> RSAKey:
    """Making one takes a while: all tests that need no second one share it."""
    return RSAKey.generate_key(2048)


def new_key(algorithm: str) -> Key:
    match algorithm[:2]:
        case "RS" | "PS":
            return rsa_key()
        case "ES":
            return ECKey.generate_key({"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[algorithm])
        case _:
            return OKPKey.generate_key("Ed25519")


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def compact(header: object, claims: object, sign: Callable[[bytes], bytes]) -> str:
    """A JWT as its sender wants it, right or wrong. bytes are taken as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    signed = ".".join(map(base64url, parts))
    return f"{signed}.{base64url(sign(signed.encode()))}"


def signer(algorithm: str, key: Key) -> Callable[[bytes], bytes]:
    return lambda text: JWSRegistry.algorithms[algorithm].sign(text, key)


class FakeIssuer:
    """fetches: how often its key set was asked for. answer: what its server does instead of sending it."""

    def __init__(self, name: str = "corp", audience: str = "deployments") -> None:
        self.name = name
        self.issuer = f"https://{name}.example"
        self.audience = audience
        self.keys: dict[str, tuple[str, Key]] = {}  # by kid: the algorithm and the private key
        self.fetches = 0
        self.clock: Callable[[], float] = time.time
        self.answer: Callable[[BaseHTTPRequestHandler], None] | None = None
        self.new_key("first")

    def new_key(self, kid: str, algorithm: str = "ES256") -> Key:
        """Publish one more key; tokens are signed with the newest."""
        key = new_key(algorithm)
        self.keys[kid] = algorithm, key
        return key

    def token(self, kid: str | None = None, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A valid token, but for what is given. Claims and header parameters that are None are left out."""
        kid = kid or next(reversed(self.keys))
        algorithm, key = self.keys[kid]
        full = {"alg": algorithm, "typ": "JWT", "kid": kid, **(header or {})}
        return compact(_given(full), self.claims(**claims), signer(algorithm, key))

    def claims(self, **claims: Any) -> dict[str, Any]:
        now = int(self.clock())
        usual = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": "alice",
            "iat": now,
            "exp": now + LIFETIME_SECONDS,
        }
        return _given({**usual, **claims})

    def key_set(self) -> dict[str, Any]:
        return {"keys": [{**key.as_dict(private=False), "kid": kid} for kid, (_, key) in self.keys.items()]}

    def in_file(self, path: Path, **options: Any) -> Issuer:
        """Its key set in a file, which nobody ever sees half of, and the entry of DP_JWT_ISSUERS."""
        whole = path.with_suffix(".new")
        whole.write_text(json.dumps(self.key_set()))
        whole.rename(path)
        return self._entry(jwks_file=path, **options)

    @contextlib.contextmanager
    def serving(self, ca: trustme.CA, **options: Any) -> Iterator[Issuer]:
        """Its key set on https://127.0.0.1, where that CA vouches for it, and the entry of DP_JWT_ISSUERS."""
        server = _Server(("127.0.0.1", 0), _handler(self))
        server.trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1").configure_cert(server.trust)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self._entry(jwks_url=f"https://127.0.0.1:{server.server_port}/keys", **options)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def _entry(self, **options: Any) -> Issuer:
        return Issuer(**{"name": self.name, "issuer": self.issuer, "audience": self.audience, **options})


def settings_of(*entries: Issuer) -> str:
    """For DP_JWT_ISSUERS."""
    fields = ("name", "issuer", "audience", "algorithms", "jwks_url", "jwks_file")
    given = [{name: getattr(entry, name) for name in fields if getattr(entry, name)} for entry in entries]
    return json.dumps(given, default=str)


HANGS_SECONDS = 20  # for a machine that stalls: whatever hangs ends the test


async def fetched(entry: Issuer) -> tuple[KeyUrl, bool]:
    """A key set after one fetch, and whether that went well."""
    source = KeyUrl(entry.jwks_url)
    async with asyncio.timeout(HANGS_SECONDS):
        return source, await source.fetch()


class _Server(ThreadingHTTPServer):
    trust: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        """TLS in the connection's own thread: a client that says nothing holds up nobody else."""
        try:
            with self.trust.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)
        except OSError:
            pass  # the client hung up: some tests are about that


def _handler(issuer: FakeIssuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.fetches += 1
            if issuer.answer:
                issuer.answer(self)
            else:
                send(self, json.dumps(issuer.key_set()).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Not into the tests' output."""

    return Handler


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
