"""Deployment ids, and the ids of requests that came without one."""

import os
import time
from uuid import UUID, uuid5

# What deployment ids are derived from, together with the pipeline and the request_id (RFC 9562, version 5).
_NAMESPACE = UUID("7b0b4a3e-6a55-5d0c-9d0b-5c1b7c6f3a10")

# How the request ids begin that the service makes.
OWN_REQUEST_ID = "auto-"


def deployment_id(pipeline: str, request_id: str) -> UUID:
    """Known before any I/O, so that a retry names the same deployment. Without a request_id: ordered by time
    (version 7). A "/" in the pipeline's name is written %2F, so that no two pairs join to the same text."""
    if request_id:
        return uuid5(_NAMESPACE, f"{pipeline.replace('/', '%2F')}/{request_id}")
    return _by_time()


def redeployment_id(rolled_back: UUID) -> UUID:
    """The id of the deployment that a rollback puts in place of this one. A deployment is rolled back once,
    so there is one, and a repeat names the same."""
    return uuid5(_NAMESPACE, f"redeployment of {rolled_back}")


def own_request_id(name: str) -> str:
    """For a change whose caller sent none. A caller's never begins so."""
    return f"{OWN_REQUEST_ID}{name}"


def _by_time() -> UUID:
    bits = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)
