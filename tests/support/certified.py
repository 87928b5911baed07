"""A service, in this process, whose callers have certificates."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.certificates import Authority, Pair, Secret, caller
from support.clients import Client, TypedClient
from support.handshakes import connection
from support.secured import Files, token
from support.stores import scratch_folder

TRUST_DOMAIN = "corp"
CI = "spiffe://corp/ci"
OPS = "spiffe://corp/ops"
ADMIN = "spiffe://corp/admin"
GATEWAY = "spiffe://corp/gateway"
LISTEN = "mtls://127.0.0.1:0,tls://127.0.0.1:0,plain://127.0.0.1:0"


@dataclass
class Service:
    """While it runs: its addresses, and the CA of its own certificate and of its callers'."""

    authority: Authority
    mtls: str
    tls: str
    plain: str

    def caller(
        self, *uris: str, at: str = "", **options: Any
    ) -> contextlib.AbstractAsyncContextManager[TypedClient]:
        """As `with_pair`, with a certificate of these URIs."""
        return self.with_pair(self.authority.client(*uris, **options), at)

    @contextlib.asynccontextmanager
    async def with_pair(self, pair: Pair, at: str = "") -> AsyncIterator[TypedClient]:
        """A client, with a connection of its own. at: the address of a proxy before the service, if there is
        one."""
        async with connection(at or self.mtls, caller(self.authority, pair)) as channel:
            yield TypedClient(channel)

    @contextlib.asynccontextmanager
    async def anonymous(self, address: str) -> AsyncIterator[TypedClient]:
        """A client of one of the other two."""
        credentials = caller(self.authority) if address == self.tls else None
        async with connection(address, credentials) as channel:
            yield TypedClient(channel)


@contextlib.asynccontextmanager
async def certified(
    settings: Settings, authority: Authority, files: Files, **more: Any
) -> AsyncIterator[Service]:
    """Serve with these files on three listeners."""
    with scratch_folder() as folder:
        own = {
            **Secret(folder, authority.server(), authority).settings(),
            "listen": LISTEN,
            "trust_domain": TRUST_DOMAIN,
            "tokens_file": files.tokens,
            "grants_file": files.grants,
            **more,
        }
        async with running(settings.model_copy(update=own)) as bound:
            yield Service(authority, *(listener.address for listener in bound))


async def who(client: Client, *metadata: tuple[str, str]) -> str:
    """Whom the service takes it for; empty: nobody in particular."""
    return str((await client.call("GetServerInfo", metadata=metadata)).principal)


def bearer(name: str) -> tuple[str, str]:
    """The metadata with somebody's static token."""
    return "authorization", f"Bearer {token(name)}"
