"""What single steps on every call's path cost, each timed alone."""

import time
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks import credentials
from deployment_pipeline import call
from deployment_pipeline.edge.entrance import Entrance
from deployment_pipeline.run.access import access
from deployment_pipeline.run.settings import Settings
from dp.v1 import deployment_pipeline_pb2 as pb

CALLS = 100_000
RUNS = 5
# What comes with a call beside its token.
METADATA = (("user-agent", "grpc-python/1.85"), ("x-request-id", "6f1c9a52-0f0e-4a8e-9c59-1d0c3c1a7b11"))


class _Call:
    """What the step asks of gRPC's context: here it costs nothing."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = (*METADATA, *metadata)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50000"


async def entrance_us(folder: Path) -> tuple[float, float]:
    """Who calls, and whether they may, per call: for a caller with a token that was verified
    before, and on a server without authentication."""
    made = credentials.make(folder)
    token = _Call(("authorization", f"Bearer {made.token}"))
    async with access(Settings(**made.settings), _no_pipeline) as (secured, _):
        with_token = await _timed(secured, token)
    async with access(Settings(), _no_pipeline) as (without, _):
        return with_token, await _timed(without, _Call())


async def _timed(entrance: Entrance, context: Any) -> float:
    """The least of some runs, in microseconds of CPU per call: whatever else the machine does only adds."""
    request = pb.GetDeploymentStatusRequest(deployment_id=str(UUID(int=1)))
    call.begin(None)
    found = []
    for _ in range(RUNS):
        began = time.process_time()
        for _ in range(CALLS):
            await entrance.admit("GetDeploymentStatus", request, context)
        found.append((time.process_time() - began) / CALLS * 1e6)
    return min(found)


async def _no_pipeline(_: UUID) -> str | None:
    return None
