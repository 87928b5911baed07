"""Which addresses can be the same server's."""

import pytest

from deployment_pipeline.cli.healthcheck import is_same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051", True),
        ("localhost:50051", "127.0.0.1:50051", True),
        ("0.0.0.0:50051", "127.0.0.1:50051", True),
        ("10.0.0.1:50051", "[::]:50051", True),
        ("[::1]:50051", "[0:0:0:0:0:0:0:1]:50051", True),
        ("Service.local:1", "service.local:1", True),
        ("127.0.0.1:0", "127.0.0.1:41234", True),
        ("127.0.0.1:50051", "127.0.0.1:50052", False),
        ("0.0.0.0:50051", "127.0.0.1:50052", False),
        ("127.0.0.1:50051", "127.0.0.2:50051", False),
        ("[::1]:50051", "127.0.0.1:50051", False),
        ("10.0.0.1:0", "127.0.0.1:50051", False),
    ],
)
def test_addresses_are_compared_however_they_are_written(one: str, other: str, same: bool) -> None:
    assert is_same(one, other) is same
    assert is_same(other, one) is same
