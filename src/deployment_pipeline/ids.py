"""What makes a call recognisable when it comes again."""

import json
import os
import time
from dataclasses import dataclass
from hashlib import blake2b
from uuid import UUID, uuid4, uuid5

# What deployment ids are derived from, together with the pipeline and the request_id (RFC 9562, version 5).
_NAMESPACE = UUID("7b0b4a3e-6a55-5d0c-9d0b-5c1b7c6f3a10")
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A change's request_id, and a digest of what was asked, to tell a repeat from another request.
    digest None: the caller sent no id, and this one was made for the service's own repeat."""

    id: str
    digest: bytes | None


def request_key(request_id: str, *request: object) -> RequestKey:
    if not request_id:
        return RequestKey(f"auto-{uuid4()}", None)
    text = json.dumps(request, sort_keys=True, default=str)
    return RequestKey(request_id, blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest())


def deployment_id_for(pipeline: str, request_id: str) -> UUID:
    """Known before any I/O, so that a retry names the same deployment; else ordered by time (version 7)."""
    if request_id:
        return uuid5(_NAMESPACE, f"{pipeline}/{request_id}")
    return _by_time()


def redeployment_id_for(rolled_back: UUID) -> UUID:
    """Of the deployment that a rollback puts in its place. A deployment is rolled back once, so there is
    one, and a repeat names the same."""
    return uuid5(_NAMESPACE, f"redeployment of {rolled_back}")


def _by_time() -> UUID:
    bits = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)
