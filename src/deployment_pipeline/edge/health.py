"""The standard health service, and the probe behind its readiness.

"" and the service's name say that this server serves; "liveness" that its process does, and never looks at
Postgres or Redis; "readiness" that Postgres answers and takes changes, too.
"""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from deployment_pipeline.refusals import Overloaded, StoreUnavailable
from dp.v1 import deployment_pipeline_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["DeploymentPipeline"].full_name
LIVENESS = "liveness"
READINESS = "readiness"
PROBE_PAUSE_SECONDS = 2.0

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


log = structlog.get_logger()


class Health(aio.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """Health v1, with the List call that the library leaves out."""

    async def List(
        self,
        request: health_pb2.HealthListRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthListRequest, health_pb2.HealthListResponse],
    ) -> health_pb2.HealthListResponse:
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status)
            for name, status in self._server_status.items()
        }
        return health_pb2.HealthListResponse(statuses=statuses)

    async def start(self) -> None:
        for name in ("", SERVICE, LIVENESS, READINESS):
            await self.set(name, SERVING)

    async def enter_graceful_shutdown(self) -> None:
        """Say NOT_SERVING from now on. A process that drains is alive all the same."""
        for name in (*self._server_status,):
            if name != LIVENESS:
                await self.set(name, NOT_SERVING)
        self._gracefully_shutting_down = True

    async def keep_ready(self, probe: Callable[[], Awaitable[None]]) -> None:
        """Set readiness from what asks Postgres, until cancelled."""
        ready = True
        while True:
            await asyncio.sleep(PROBE_PAUSE_SECONDS)
            before = ready
            try:
                await probe()
                ready = True
            except StoreUnavailable:
                ready = False
            except Overloaded:
                pass  # busy, not away: sending the load elsewhere would only move it
            except Exception:
                log.exception("the readiness probe failed")
                ready = False
            if ready != before:
                event = "postgres is back" if ready else "postgres is away, or takes no changes"
                log.warning(event, ready=ready)
                await self.set(READINESS, SERVING if ready else NOT_SERVING)
