"""The ways on which calls get to the replicas: who repeats them there, and what the service can see of it."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from support.clients import published_config
from support.mesh.balancers import haproxy, nginx
from support.mesh.changes import Change
from support.mesh.envoy import envoy, gateway
from support.mesh.losses import Losses

# Where calls are sent to, while the context lasts. Answers get lost between the proxy and the replicas.
Open: TypeAlias = Callable[[Sequence[str], Losses], contextlib.AbstractAsyncContextManager[str]]


@dataclass(frozen=True)
class Route:
    """open: raises NotInstalled."""

    name: str
    open: Open
    # Whether the service can see that a call is a repeat.
    marks: bool = False
    # Whether every attempt of one call carries the same x-request-id, and another call another one.
    identity: bool = False
    # Whether it sends calls again at all.
    repeats: bool = True
    # Of the caller's channel.
    options: Sequence[tuple[str, Any]] = field(default=())
    # Whether replicas are killed and replaced all the while.
    rolls: bool = False

    def protects(self, change: Change) -> bool:
        """Whether a repeat of that change must do no harm here."""
        seen = self.marks or (self.identity and change.knows_identity)
        return change.is_safe or seen or not self.repeats


@contextlib.asynccontextmanager
async def _losing(addresses: Sequence[str], losses: Losses) -> AsyncIterator[list[str]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(losses.before(address)) for address in addresses]


@contextlib.asynccontextmanager
async def _direct(replicas: Sequence[str], losses: Losses) -> AsyncIterator[str]:
    async with _losing(replicas, losses) as addresses:
        yield "ipv4:" + ",".join(addresses)


def _through(proxy: Callable[[Sequence[str]], contextlib.AbstractContextManager[str]]) -> Open:
    @contextlib.asynccontextmanager
    async def open(replicas: Sequence[str], losses: Losses) -> AsyncIterator[str]:
        async with _losing(replicas, losses) as addresses:
            with proxy(addresses) as address:
                yield address

    return open


def _envoy(**changed: Any) -> Open:
    @contextlib.contextmanager
    def run(upstreams: Sequence[str]) -> Any:
        with envoy(gateway(upstreams, **changed)) as started:
            yield started.address

    return _through(run)


COUNTS = {"virtual_host": {"include_request_attempt_count": True}}
# An edge, which trusts no identity from outside.
NEW_IDS = {"connection_manager": {"use_remote_address": True}}


def _two_envoys(**inner: Any) -> Open:
    """Answers get lost between the two: the outer one repeats, and the inner one counts anew."""

    @contextlib.asynccontextmanager
    async def open(replicas: Sequence[str], losses: Losses) -> AsyncIterator[str]:
        with envoy(gateway(replicas, **COUNTS, **inner)) as behind:
            async with losses.before(behind.address) as address:
                with envoy(gateway([address], **COUNTS)) as before:
                    yield before.address

    return open


DIRECT = Route("no proxy", _direct, repeats=False)
CLIENT = Route(
    "a gRPC client with the published service config",
    _direct,
    marks=True,
    options=[
        ("grpc.service_config", published_config()),
        # Otherwise it waits for a second before it connects again.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
    ],
)
NGINX = Route("nginx", _through(nginx), repeats=False)
HAPROXY = Route("haproxy `retry-on`", _through(haproxy))
HAPROXY_WITH_IDENTITY = Route(
    "haproxy `retry-on`, which sets x-request-id",
    _through(lambda upstreams: haproxy(upstreams, identity=True)),
    identity=True,
)
ENVOY = Route("Envoy, attempt count off (its default)", _envoy(), identity=True)
ENVOY_COUNTS = Route("Envoy, attempt count on", _envoy(**COUNTS), marks=True, identity=True)
TWO_ENVOYS = Route("two Envoys that both count", _two_envoys(), identity=True)
TWO_ENVOYS_NEW_IDS = Route("the same, and the inner one makes new x-request-ids", _two_envoys(**NEW_IDS))
ENVOY_ROLLING = Route("Envoy, replicas killed and replaced meanwhile", _envoy(), identity=True, rolls=True)

ROUTES = [
    CLIENT,
    NGINX,
    HAPROXY,
    HAPROXY_WITH_IDENTITY,
    ENVOY,
    ENVOY_COUNTS,
    TWO_ENVOYS,
    TWO_ENVOYS_NEW_IDS,
    ENVOY_ROLLING,
]
