"""gRPC: the service, health and reflection; how they begin and end."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc
from grpc_health.v1 import health_pb2_grpc

from deployment_pipeline import call
from deployment_pipeline.edge import reflection, sockets
from deployment_pipeline.edge.calls import Calls
from deployment_pipeline.edge.entrance import Entrance
from deployment_pipeline.edge.health import SERVICE, Health
from deployment_pipeline.edge.listeners import Listener, Mode
from deployment_pipeline.edge.server_info import MAX_MESSAGE_BYTES, ServerInfo
from deployment_pipeline.edge.service import DeploymentPipelineService
from deployment_pipeline.edge.tls import Certificates
from deployment_pipeline.engine import Engine
from dp.v1 import deployment_pipeline_pb2_grpc as pb_grpc

# For the last answers to leave this machine.
FLUSH_SECONDS = 0.05
# After the last call's time has run out: its statement is cut, and its caller told.
LAST_ANSWER_SECONDS = 1.5

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Room for a token of 8 KiB beside what else comes with a call. Beyond this, the core refuses some calls,
    # and beyond a quarter more all.
    ("grpc.max_metadata_size", 16 * 1024),
    # Callers may ping an idle connection every ten seconds.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Beyond these the core drops calls as CANCELLED; refusing them is the business of `Calls`.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    # A peer that reads nothing answers no pings, either: its connection is closed, with what waits for it.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Nothing outlives its connection: clients are sent elsewhere now and then, in peace.
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 15_000),
    # Our messages are small: probing for more bandwidth would only let peers send more than is read.
    ("grpc.http2.bdp_probe", 0),
)


class Rpc:
    """Made and started on a running event loop."""

    def __init__(
        self,
        engine: Engine,
        entrance: Entrance,
        info: ServerInfo,
        *,
        shares_port: bool,
        reflects: bool,
        max_streams: int,
        attempt_id_headers: Sequence[str],
    ) -> None:
        """max_streams: how many calls a connection may have under way."""
        self._calls = Calls(entrance, attempt_id_headers)
        self._health = Health()
        self._streams = [self._health.watches]
        self._ports: set[int] = set()
        # gRPC shares by default: a second server would silently take half of the calls.
        own = (
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.max_concurrent_streams", max_streams),
            # The core counts a stream until Python has let go of it. Without room for those, a client that
            # goes to its limit would have calls reset; without a bound, a flood of resets fills the memory.
            ("grpc.http2.max_deallocating_streams", 2 * max_streams),
        )
        self._server = grpc.aio.server(options=OPTIONS + own)
        pb_grpc.add_DeploymentPipelineServicer_to_server(DeploymentPipelineService(engine, info), self._calls)  # type: ignore[arg-type]
        self._calls.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflects:
            self._streams.append(reflection.add(self._server, SERVICE, "grpc.health.v1.Health"))

    def bind(self, listener: Listener, certificates: Certificates | None) -> Listener:
        """Returns it with its port. Raises RuntimeError if the address cannot be bound."""
        if listener.mode is Mode.PLAIN:
            port = self._server.add_insecure_port(listener.address)
        elif certificates:
            port = self._server.add_secure_port(listener.address, certificates.credentials(listener.mode))
        else:
            raise ValueError(f"{listener} needs a certificate")
        self._ports.add(port)
        return listener.on(port)

    @property
    def is_ready(self) -> bool:
        """As health's readiness says."""
        return self._health.is_ready

    async def start(self, probe: Callable[[], Awaitable[None]]) -> None:
        """Serve. probe: what readiness depends on; see `Health.keep_ready`."""
        await self._health.start()
        await self._server.start()
        self._probing = asyncio.create_task(self._health.keep_ready(probe))

    async def stop(self, drain_seconds: float) -> None:
        """Health says NOT_SERVING while calls are still served, so that clients and balancers go elsewhere;
        then no new ones are taken, and those under way get their answers. No call gets more time than if it
        had begun now: this ends within call.LONGEST_CALL_SECONDS + LAST_ANSWER_SECONDS."""
        ends_at = time.monotonic() + call.LONGEST_CALL_SECONDS
        self._calls.end_by(ends_at)
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(drain_seconds)
        self._probing.cancel()
        self._calls.refuse_new_calls()
        for streams in self._streams:
            streams.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ends_at + LAST_ANSWER_SECONDS - time.monotonic()):
                await self._calls.drain()
        await asyncio.sleep(FLUSH_SECONDS)
        # As it stops, gRPC answers CANCELLED to whatever arrives, as if the caller had wished it. A broken
        # connection tells the truth: send it again.
        sockets.hang_up(self._ports)
        await self._server.stop(0)
        await self._calls.drain()
