"""A small synchronous client of the health service, for the command line."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

CHECK_SECONDS = 5

SERVING = "SERVING"
NOT_SERVING = "NOT_SERVING"
UNKNOWN_SERVICE = "UNKNOWN_SERVICE: the server has no service of that name"
NO_ANSWER = "NO_ANSWER: no server answers at DP_LISTEN"


def check(address: str, service: str) -> str:
    """One of the constants above."""
    with grpc.insecure_channel(address) as channel:
        return health(channel, service)


def health(channel: grpc.Channel, service: str) -> str:
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=CHECK_SECONDS)
    except grpc.RpcError as error:
        unknown = error.code() is grpc.StatusCode.NOT_FOUND
        return UNKNOWN_SERVICE if unknown else NO_ANSWER
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return SERVING if serving else NOT_SERVING
