"""Who calls."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# An id is printable ASCII without a blank.
MAX_ID_BYTES = 512


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """Somebody who has proven who he is, or ANONYMOUS.

    id: spiffe://DOMAIN/PATH of a certificate, ISSUER#SUBJECT of a JWT, token:NAME of a static token.
    issuer: the short name of who vouches for groups and claims: that of DP_JWT_ISSUERS, "token" for a static
    token; empty for a certificate, which has neither.
    expires_at: in seconds since 1970. The proof holds until then.
    """

    id: str
    issuer: str = ""
    display_name: str = ""
    groups: Sequence[str] = ()
    claims: Mapping[str, Any] = field(default_factory=dict)
    expires_at: float = math.inf


ANONYMOUS = Principal("")


def is_id(text: str) -> bool:
    """Whether a text can be a principal's id."""
    return 0 < len(text) <= MAX_ID_BYTES and text.isascii() and text.isprintable() and " " not in text


def issuer_of(id: str) -> str:
    """The short name of who vouches for the one of that id; empty: nobody does, or a CA."""
    found = re.match(r"(token):|([a-z0-9-]+)#", id)
    return (found[1] or found[2]) if found else ""
