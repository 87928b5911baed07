"""What the header and the claims of a JWT must say before its signature counts (RFC 7519, 8725, 9068)."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jws import CompactSignature, JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from deployment_pipeline.edge.identity.issuer import Issuer
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.principal import Principal, is_id

MAX_TOKEN_BYTES = 8 * 1024
# Clocks differ by that much, for exp, nbf and iat. A token proves something until exp + LEEWAY_SECONDS.
LEEWAY_SECONDS = 30
# A JWT cannot be revoked; this is for how long at most.
MAX_AHEAD_SECONDS = 24 * 60 * 60
# With or without `application/`, in any case (RFC 7515, 4.1.9). Others, such as those of ID and logout tokens
# of some issuers, were made for something else.
TYPES = ("jwt", "at+jwt")
MAX_DISPLAY_NAME = 200
_DISPLAY_CLAIMS = ("name", "preferred_username", "email")


class Registry(JWSRegistry):
    """Without joserfc's own bounds on parts: a token as a whole is bounded. Header parameters that nobody
    reads here (jku, jwk, x5u and x5c among them) are ignored, as RFC 7515 wants it."""

    max_header_length = max_payload_length = max_signature_length = MAX_TOKEN_BYTES

    def __init__(self, algorithms: Sequence[str]) -> None:
        super().__init__(algorithms=algorithms, strict_check_header=False)


_PARSING = Registry(())


class Unverified:
    """What a token says, before anybody knows whether it is true."""

    def __init__(self, token: str) -> None:
        """Raises NotProven."""
        if len(token) > MAX_TOKEN_BYTES:
            raise NotProven(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        if token.count(".") == 4:
            raise NotProven("the token is encrypted (JWE)")
        try:
            self.signed: CompactSignature = jws.extract_compact(token.encode(), registry=_PARSING)
            self.claims = json.loads(self.signed.payload.decode())
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise NotProven(f"the token is no JWT: {error!s:.200}") from None
        self.header = self.signed.headers()
        if not isinstance(self.header, dict) or not isinstance(self.claims, dict):
            raise NotProven("the token is no JWT: its header and its claims must be objects")
        self._check_header(self.header)

    @property
    def kid(self) -> str | None:
        return self.header.get("kid")

    @staticmethod
    def _check_header(header: Mapping[str, Any]) -> None:
        if "crit" in header:
            raise NotProven("the token has a crit header, and no extension is known here")
        type = header.get("typ", "JWT")
        if not isinstance(type, str) or type.lower().removeprefix("application/") not in TYPES:
            raise NotProven("the token's typ is not JWT or at+jwt")
        if not isinstance(header.get("kid", ""), str):
            raise NotProven("the token's kid is no text")


class Rules:
    """What the claims of one issuer's tokens must say, and whom they name."""

    def __init__(self, issuer: Issuer, clock: Callable[[], float]) -> None:
        self._issuer = issuer
        self._clock = clock
        self._registry = JWTClaimsRegistry(
            now=lambda: int(clock()),
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer.issuer},
            aud={"essential": True, "value": issuer.audience},
            exp={"essential": True},
        )

    def are_for(self, claims: Mapping[str, Any]) -> bool:
        """Whether they name this issuer and this audience."""
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        return claims.get("iss") == self._issuer.issuer and self._issuer.audience in audiences

    def principal(self, claims: dict[str, Any]) -> Principal:
        """Raises NotProven."""
        try:
            self._registry.validate(claims)
        except JoseError as error:
            raise NotProven(f"the token's claims do not hold: {error!s:.200}") from None
        expires_at, now = claims["exp"] + LEEWAY_SECONDS, self._clock()
        if not now < expires_at <= now + MAX_AHEAD_SECONDS + 2 * LEEWAY_SECONDS:
            raise NotProven(f"the token has expired, or its exp is more than {MAX_AHEAD_SECONDS} s ahead")
        return Principal(
            self._id(claims),
            issuer=self._issuer.name,
            display_name=_display_name(claims),
            groups=self._groups(claims),
            claims=claims,
            expires_at=float(expires_at),
        )

    def _id(self, claims: Mapping[str, Any]) -> str:
        subject = claims.get(self._issuer.id_claim)
        id = f"{self._issuer.name}#{subject}"
        if not isinstance(subject, str) or not subject or not is_id(id):
            raise NotProven(f"the token's {self._issuer.id_claim} is missing, or cannot be an id")
        return id

    def _groups(self, claims: Mapping[str, Any]) -> Sequence[str]:
        """Refuses what it cannot read: a deny may be for one of those groups."""
        found = claims.get(self._issuer.group_claim)
        groups = [] if found is None else [found] if isinstance(found, str) else found
        if not isinstance(groups, list) or not all(map(_is_group, groups)):
            raise NotProven(f"the token's {self._issuer.group_claim} is neither a text nor a list of texts")
        return tuple(groups)


def _is_group(group: object) -> bool:
    """Printable, for callers are shown their groups: half a surrogate pair could not even be sent."""
    return isinstance(group, str) and group.isprintable()


def _display_name(claims: Mapping[str, Any]) -> str:
    """For people to read, so nothing that a terminal obeys."""
    names = (claims.get(claim) for claim in _DISPLAY_CLAIMS)
    readable = (name for name in names if isinstance(name, str) and name and name.isprintable())
    return next(readable, "")[:MAX_DISPLAY_NAME]
