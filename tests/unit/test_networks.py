"""Whose failures are counted together."""

import pytest

from deployment_pipeline.edge.identity.identity import network


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("ipv4:192.0.2.1", "ipv4:192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2::9%5D", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:3::9%5D", "2001:db8:1:3::/64"),
        ("ipv6:%5B::1%5D", "::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D", "fe80::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D", "192.0.2.1"),
        ("unix", "unix"),
        ("", ""),
    ],
)
def test_a_network_is_counted_as_one(host: str, expected: str) -> None:
    assert network(host) == expected
