"""The command line's synchronous client, on grpcio-testing's channel."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc_testing
import pytest
from grpc_health.v1 import health_pb2

from deployment_pipeline.edge import probe

CHECK = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name["Check"]
STATUS = health_pb2.HealthCheckResponse


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (STATUS(status=STATUS.SERVING), grpc.StatusCode.OK, probe.SERVING),
        (STATUS(status=STATUS.NOT_SERVING), grpc.StatusCode.OK, probe.NOT_SERVING),
        (None, grpc.StatusCode.NOT_FOUND, probe.UNKNOWN_SERVICE),
        (None, grpc.StatusCode.UNAVAILABLE, probe.NO_ANSWER),
    ],
)
def test_health_is_what_the_health_service_said(
    answer: health_pb2.HealthCheckResponse | None, code: grpc.StatusCode, said: str
) -> None:
    services = health_pb2.DESCRIPTOR.services_by_name.values()
    channel = grpc_testing.channel(services, grpc_testing.strict_real_time())
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(probe.health, channel, "readiness")
        _, request, call = channel.take_unary_unary(CHECK)
        assert request == health_pb2.HealthCheckRequest(service="readiness")
        call.send_initial_metadata(())
        call.terminate(answer, (), code, "")
        assert result.result(timeout=5) == said
