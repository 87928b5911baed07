"""SPIFFE ids, by their standard: spiffe://TRUST-DOMAIN/PATH."""

import re

from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.principal import is_id

_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
# No user, port, query or fragment, nothing written as %XX, no empty segment, and no slash at the end. An id
# without a path is that of a trust domain itself, for those who sign certificates.
_ID = re.compile(rf"spiffe://({_DOMAIN.pattern})((?:/[A-Za-z0-9._-]+)+)")


def is_domain(text: str) -> bool:
    return _DOMAIN.fullmatch(text) is not None


def check(text: str, trust_domain: str) -> None:
    """Raises NotProven if it is not the id of a workload of that trust domain (empty: of any)."""
    found = _ID.fullmatch(text)
    if not found or not is_id(text) or {".", ".."} & set(found[2].split("/")):
        raise NotProven(f"{text!r} is no SPIFFE id")
    if trust_domain and found[1] != trust_domain:
        raise NotProven(f"{text!r} is of another trust domain than {trust_domain}")
