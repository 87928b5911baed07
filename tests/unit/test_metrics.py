"""Calls are counted under the names that dashboards know."""

from typing import Any

import grpc
import pytest

from deployment_pipeline import metrics

# As gRPC for Go names them.
CODES = {
    "OK": "OK",
    "CANCELLED": "Canceled",
    "UNKNOWN": "Unknown",
    "INVALID_ARGUMENT": "InvalidArgument",
    "DEADLINE_EXCEEDED": "DeadlineExceeded",
    "NOT_FOUND": "NotFound",
    "ALREADY_EXISTS": "AlreadyExists",
    "PERMISSION_DENIED": "PermissionDenied",
    "RESOURCE_EXHAUSTED": "ResourceExhausted",
    "FAILED_PRECONDITION": "FailedPrecondition",
    "ABORTED": "Aborted",
    "OUT_OF_RANGE": "OutOfRange",
    "UNIMPLEMENTED": "Unimplemented",
    "INTERNAL": "Internal",
    "UNAVAILABLE": "Unavailable",
    "DATA_LOSS": "DataLoss",
    "UNAUTHENTICATED": "Unauthenticated",
}


def value(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_codes_have_the_names_that_go_gives_them(code: grpc.StatusCode) -> None:
    method: dict[str, Any] = {
        "grpc_type": "unary",
        "grpc_service": "test.Codes",
        "grpc_method": f"M{code.name}",
    }
    metrics.expect(method["grpc_service"], method["grpc_method"], streams=False)
    metrics.call_ended(method["grpc_method"], code.name, 0.1)
    assert value("grpc_server_handled_total", grpc_code=CODES[code.name], **method) == 1


def test_a_method_is_there_before_its_first_call() -> None:
    metrics.expect("test.Zero", "Follow", streams=True)
    method: dict[str, Any] = {
        "grpc_type": "server_stream",
        "grpc_service": "test.Zero",
        "grpc_method": "Follow",
    }
    assert value("grpc_server_started_total", **method) == 0
    assert value("grpc_server_handled_total", grpc_code="OK", **method) == 0
    assert value("grpc_server_handling_seconds_count", **method) == 0
    metrics.call_began("Follow")
    metrics.call_ended("Follow", "OK", 0.003)
    assert value("grpc_server_started_total", **method) == 1
    assert value("grpc_server_handling_seconds_sum", **method) == 0.003
    buckets = [
        value("grpc_server_handling_seconds_bucket", le=le, **method)
        for le in ("0.0025", "0.005", "0.01", "+Inf")
    ]
    assert buckets == [0, 1, 1, 1]
