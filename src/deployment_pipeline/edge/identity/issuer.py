"""An issuer of JWTs, as DP_JWT_ISSUERS names it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

# Those with a private and a public key: what is fetched from an issuer is no secret.
ALGORITHMS = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "Ed25519",
    "EdDSA",
)
# Who vouches for static tokens, and for the service itself.
STATIC = "token"
RESERVED = (STATIC, "system")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """name: how its principals and grants name it. issuer, audience: what a token's iss and aud must be.
    id_claim: what names the caller. group_claim: a list of texts, or one; empty: it has no groups."""

    name: str
    issuer: str
    audience: str
    jwks_url: str = ""
    jwks_file: Path | None = None
    algorithms: Sequence[str] = ("RS256", "ES256")
    id_claim: str = "sub"
    group_claim: str = ""

    # Of pydantic, which reads DP_JWT_ISSUERS: a name that is misspelt must not leave a default in place.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in RESERVED:
            raise ValueError(f"name must be of a-z, 0-9 and '-', and not {' or '.join(RESERVED)}")
        if not (self.issuer and self.audience and self.id_claim):
            raise ValueError("issuer, audience and id_claim must not be empty")
        if bool(self.jwks_url) == bool(self.jwks_file):
            raise ValueError("one of jwks_url and jwks_file is needed")
        if self.jwks_url and not _is_https(self.jwks_url):
            raise ValueError("jwks_url must be like https://HOST/PATH, without a user name")
        if not self.algorithms or not set(self.algorithms) <= set(ALGORITHMS):
            raise ValueError(f"algorithms must be of {', '.join(ALGORITHMS)}")


def _is_https(url: str) -> bool:
    """Raises ValueError if the port is no port."""
    parts = urlsplit(url)
    if not url.isascii() or not url.isprintable() or " " in url or parts.port == 0:
        return False
    return parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc
