"""gRPC on one address: the service, health and reflection; how they begin and end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc
from grpc_health.v1 import health_pb2_grpc

from deployment_pipeline.edge import reflection
from deployment_pipeline.edge.calls import Calls
from deployment_pipeline.edge.health import SERVICE, Health
from deployment_pipeline.edge.service import DeploymentPipelineService
from deployment_pipeline.engine import Engine
from dp.v1 import deployment_pipeline_pb2_grpc as pb_grpc

MAX_MESSAGE_BYTES = 1024 * 1024
# Longer than the longest call, so that none is cut off; shorter than what is left of 15 s for the rest.
STOP_SECONDS = 11.0

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Callers may ping an idle connection every ten seconds.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Beyond these the core drops calls as CANCELLED; refusing them is the business of `Calls`.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
)


class Rpc:
    """Made and started on a running event loop."""

    def __init__(
        self, engine: Engine, *, shares_port: bool, reflects: bool, attempt_id_headers: Sequence[str]
    ) -> None:
        self._calls = Calls(attempt_id_headers)
        self._health = Health()
        # gRPC shares by default: a second server would silently take half of the calls.
        self._server = grpc.aio.server(options=(*OPTIONS, ("grpc.so_reuseport", int(shares_port))))
        pb_grpc.add_DeploymentPipelineServicer_to_server(DeploymentPipelineService(engine), self._calls)  # type: ignore[arg-type]
        self._calls.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflects:
            reflection.add(self._server, SERVICE, "grpc.health.v1.Health")

    def bind(self, listen: str) -> int:
        """Returns the port. Raises RuntimeError if the address cannot be bound."""
        return self._server.add_insecure_port(listen)

    async def start(self, probe: Callable[[], Awaitable[None]]) -> None:
        """Serve. probe: what readiness depends on; see `Health.keep_ready`."""
        await self._health.start()
        await self._server.start()
        self._probing = asyncio.create_task(self._health.keep_ready(probe))

    async def stop(self, drain_seconds: float) -> None:
        """Health says NOT_SERVING while calls are still served, so that clients and balancers go elsewhere;
        then no new ones are taken, and those under way get their answers."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(drain_seconds)
        self._calls.refuse_new_calls()
        self._probing.cancel()
        await self._server.stop(STOP_SECONDS)
        await self._calls.drain()
