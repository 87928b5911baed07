"""What metadata says of a call's attempts."""

import pytest

from deployment_pipeline.call import UNMARKED, Attempt
from deployment_pipeline.edge.attempts import attempt

ID = "0123456789abcdef"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([], UNMARKED),
        ([("user-agent", "x"), ("x-envoy-attempt-count", "1")], UNMARKED),
        ([("x-envoy-attempt-count", "2")], Attempt(is_repeat=True)),
        ([("grpc-previous-rpc-attempts", "1")], Attempt(is_repeat=True)),
        ([("x-a", ID)], Attempt(id=ID)),
        ([("x-b", "b" * 16), ("x-a", ID)], Attempt(id=ID)),
        ([("x-b", "b" * 16), ("x-a", "short")], Attempt(id="b" * 16)),
        ([("x-a", "x" * 128)], Attempt(id="x" * 128)),
        ([("x-a", "x" * 129), ("x-request-id", ID)], UNMARKED),
        ([("x-a", "\0" * 16)], UNMARKED),
        ([("x-a", "\ud800" * 16)], UNMARKED),
        ([("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")], Attempt(trace_id=TRACE)),
        ([("traceparent", "00-short-00f067aa0ba902b7-01")], UNMARKED),
        ([("traceparent", "")], UNMARKED),
    ],
)
def test_an_attempt(metadata: list[tuple[str, str]], expected: Attempt) -> None:
    assert attempt(metadata, ["x-a", "x-b"]) == expected
