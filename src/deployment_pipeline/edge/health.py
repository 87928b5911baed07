"""The standard health service, and the probe behind its readiness.

"" and the service's name say that this server serves; "liveness" that its process does, and never looks at
Postgres or Redis; "readiness" that Postgres answers and takes changes, too.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from deployment_pipeline.edge.answers import Context
from deployment_pipeline.edge.streams import Streams
from deployment_pipeline.refusals import Overloaded, StoreUnavailable
from dp.v1 import deployment_pipeline_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["DeploymentPipeline"].full_name
LIVENESS = "liveness"
READINESS = "readiness"
PROBE_PAUSE_SECONDS = 2.0
# In this process. Every client with the published service config has one for each connection.
MAX_WATCHES = 1000

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


log = structlog.get_logger()


class Health(aio.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """Health v1, with the List call that the library leaves out, and a Watch of its own: the library's sends
    under a lock, so that one client that reads nothing would hold up all others, and the server's end."""

    def __init__(self) -> None:
        super().__init__()
        self.watches = Streams(MAX_WATCHES)
        self._changed = asyncio.Event()  # a new one after each change

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        known = None
        async with self.watches.place(context):
            while True:
                changed = self._changed
                status = self._server_status.get(request.service, SERVICE_UNKNOWN)
                if status != known:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                known = status
                await changed.wait()

    async def set(self, service: str, status: int) -> None:
        await super().set(service, status)
        self._changed.set()
        self._changed = asyncio.Event()

    async def List(
        self, request: health_pb2.HealthListRequest, context: Context
    ) -> health_pb2.HealthListResponse:
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status)
            for name, status in self._server_status.items()
        }
        return health_pb2.HealthListResponse(statuses=statuses)

    async def start(self) -> None:
        for name in ("", SERVICE, LIVENESS, READINESS):
            await self.set(name, SERVING)

    @property
    def is_ready(self) -> bool:
        return bool(self._server_status.get(READINESS) == SERVING)

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
