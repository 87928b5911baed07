"""Who calls. One credential decides: a bearer token if one was sent, else the certificate that a trusted
proxy vouches for, else the caller's own. If it proves nothing, the others are not looked at."""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network
from urllib.parse import unquote

from deployment_pipeline.edge.answers import Context
from deployment_pipeline.edge.identity.certificates import Certified
from deployment_pipeline.edge.identity.forwarded import Forwarded
from deployment_pipeline.edge.identity.jwts import Jwts
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.edge.identity.static_tokens import PREFIX, StaticTokens
from deployment_pipeline.edge.rates import MAX_KEYS, Rates
from deployment_pipeline.principal import ANONYMOUS, Principal
from deployment_pipeline.refusals import RateLimited, Unauthenticated

BEARER = "Bearer "
# How many credentials that prove nothing an address may send before it is told to come back later.
FAILURES_PER_SECOND = 20
FAILURES_AT_ONCE = 100


class Identity:
    def __init__(
        self,
        certified: Certified | None,
        forwarded: Forwarded | None,
        jwts: Jwts | None,
        tokens: StaticTokens | None,
        *,
        takes_anonymous: bool,
    ) -> None:
        """None: this way in is not open. takes_anonymous: callers without a credential have a role."""
        self._certified = certified
        self._forwarded = forwarded
        self._jwts = jwts
        self._tokens = tokens
        self._takes_anonymous = takes_anonymous
        self._failures = Rates(FAILURES_PER_SECOND, FAILURES_AT_ONCE)
        self.is_open = bool(certified or forwarded or jwts or tokens)

    def known(self, authorizations: Sequence[str]) -> Principal | None:
        """By a token that was verified before, as most calls are."""
        if self._jwts and len(authorizations) == 1 and authorizations[0].startswith(BEARER):
            return self._jwts.known(authorizations[0][len(BEARER) :])
        return None

    async def principal(self, authorizations: Sequence[str], context: Context) -> Principal:
        """Whom `known` does not know. authorizations: the values of that metadata.

        Raises Unauthenticated, KeysUnavailable, RateLimited."""
        if not self.is_open:
            return ANONYMOUS
        try:
            if authorizations:
                return await self._bearer(authorizations, context)
            if certified := self._certificate(context):
                return certified
        except NotProven as error:
            # Only now: behind a proxy everybody has the same address, and one who guesses must not keep out
            # those with good tokens. To verify a signature costs less than the rest of a call.
            if wait := self._failures.take(address(context)):
                raise RateLimited(retry_ms(wait)) from error
            raise Unauthenticated(self._ways()) from error
        if not self._takes_anonymous:
            raise Unauthenticated(self._ways())
        return ANONYMOUS

    async def _bearer(self, authorizations: Sequence[str], context: Context) -> Principal:
        """Raises NotProven, KeysUnavailable."""
        [authorization, *others] = authorizations
        scheme, token = authorization[: len(BEARER)], authorization[len(BEARER) :]
        if others or scheme.lower() != BEARER.lower():
            raise NotProven("authorization is not one bearer token")
        if self._tokens and token.startswith(PREFIX):
            return self._tokens.principal(token)
        if not self._jwts:
            raise NotProven("tokens of this kind are not accepted")
        if known := self._jwts.known(token):  # with another spelling of "Bearer"
            return known
        return await self._jwts.principal(token)

    def _certificate(self, context: Context) -> Principal | None:
        """Raises NotProven."""
        own = self._certified.principal(context) if self._certified else None
        if not self._forwarded:
            return own
        metadata = tuple(context.invocation_metadata() or ())
        return self._forwarded.principal(metadata, context.peer(), own) or own

    def _ways(self) -> Sequence[str]:
        ways = {
            "a client certificate": self._certified,
            "a client certificate that a trusted proxy vouches for": self._forwarded,
            "authorization: Bearer with a JWT": self._jwts,
            f"authorization: Bearer with a static token ({PREFIX}...)": self._tokens,
        }
        return [way for way, is_open in ways.items() if is_open]


def address(context: Context) -> str:
    """The peer's, without its port."""
    return network(context.peer().rpartition(":")[0])


@lru_cache(MAX_KEYS)
def network(host: str) -> str:
    """host: as gRPC writes it. Of IPv6, the 64 bits that a customer has: within them he has any number."""
    if not host.startswith("ipv6:"):
        return host
    found = ip_address(unquote(host).removeprefix("ipv6:").strip("[]"))
    return str(getattr(found, "ipv4_mapped", None) or ip_network((int(found) >> 64 << 64, 64)))


def retry_ms(wait_seconds: float) -> int:
    return max(1, round(wait_seconds * 1000))
