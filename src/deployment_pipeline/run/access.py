"""Who may call, and what they may do: made of the settings and of the files that they name."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any
from uuid import UUID

from deployment_pipeline.edge import grants_file, reloading
from deployment_pipeline.edge.entrance import Entrance
from deployment_pipeline.edge.grants import Access, Grant, Match, Role
from deployment_pipeline.edge.identity.certificates import Certified
from deployment_pipeline.edge.identity.forwarded import Forwarded
from deployment_pipeline.edge.identity.identity import Identity
from deployment_pipeline.edge.identity.issuer import STATIC
from deployment_pipeline.edge.identity.jwts import Jwts
from deployment_pipeline.edge.identity.static_tokens import StaticTokens
from deployment_pipeline.edge.listeners import Mode
from deployment_pipeline.edge.rates import Rates
from deployment_pipeline.edge.reloading import Reloading
from deployment_pipeline.edge.rights import Rights
from deployment_pipeline.edge.server_info import ServerInfo
from deployment_pipeline.principal import ANONYMOUS
from deployment_pipeline.run import exposure
from deployment_pipeline.run.settings import Settings

# So many calls at once as come in this time.
BURST_SECONDS = 1.0


@contextlib.asynccontextmanager
async def access(
    settings: Settings, pipeline_of: Callable[[UUID], Awaitable[str | None]], *others: Reloading[Any]
) -> AsyncIterator[tuple[Entrance, ServerInfo]]:
    """Files are looked at, and keys fetched, until the context ends. pipeline_of: see `Rights`. others: files
    to look at as well. Raises Unreadable."""
    jwts = Jwts(settings.issuers) if settings.issuers else None
    tokens = StaticTokens(settings.tokens_file) if settings.tokens_file else None
    grants = None
    if path := settings.grants_file:
        issuers = (*(issuer.name for issuer in settings.issuers), *([STATIC] if tokens else []))
        grants = Reloading([path], partial(grants_file.read, path, issuers))
    role = Role[exposure.anonymous_role(settings).upper()]
    identity = Identity(
        Certified(settings.trust_domain) if _has(settings, Mode.MTLS) else None,
        Forwarded(settings.xfcc_from, settings.trust_domain) if settings.xfcc_from else None,
        jwts,
        tokens,
        takes_anonymous=role is not Role.NONE,
    )
    anonymous = Access(ANONYMOUS, [Grant(match=Match(), role=role)] if role else [])
    rights = Rights(anonymous, grants, pipeline_of)
    rate = settings.rate_per_principal
    entrance = Entrance(identity, rights, Rates(rate, max(1.0, rate * BURST_SECONDS)) if rate else None)
    info = ServerInfo(
        rights,
        max_streams=settings.max_streams,
        calls_per_second=rate,
        features=list(_features(settings, identity)),
    )
    files = [*others, *(jwts.files if jwts else ())]
    files += [file for file in (tokens and tokens.file, grants) if file]
    keeping = [asyncio.create_task(reloading.keep(files))]
    if jwts:
        keeping.append(asyncio.create_task(jwts.keep()))
    try:
        yield entrance, info
    finally:
        for task in keeping:
            task.cancel()


def _has(settings: Settings, mode: Mode) -> bool:
    return any(listener.mode is mode for listener in settings.listeners)


def _features(settings: Settings, identity: Identity) -> Iterator[str]:
    if identity.is_open:
        yield "authentication"
    if settings.reflection:
        yield "reflection"
    if settings.require_tokens:
        yield "required_tokens"
