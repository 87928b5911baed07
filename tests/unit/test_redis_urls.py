"""What a Redis URL may say."""

import pytest
from redis.asyncio import SSLConnection

from deployment_pipeline.guard.pool import CONNECTIONS, connections_to
from deployment_pipeline.run import settings
from deployment_pipeline.run.settings import InvalidSettings

OURS = (
    "decode_responses=true&encoding=latin-1&encoding_errors=ignore&protocol=3&socket_timeout=5"
    "&socket_connect_timeout=5&retry_on_timeout=true&max_connections=1&health_check_interval=9"
)


def test_what_is_ours_to_say_has_no_effect_in_a_url() -> None:
    connection, plain = (
        connections_to(url).make_connection()  # type: ignore[no-untyped-call]
        for url in (f"redis://redis/3?{OURS}", "redis://redis/3")
    )
    for name in ("db", "socket_timeout", "socket_connect_timeout", "protocol", "health_check_interval"):
        assert getattr(connection, name) == getattr(plain, name)
    assert connection.retry.get_retries() == 0
    assert not connection.encoder.decode_responses
    assert connections_to(f"redis://redis?{OURS}").max_connections == CONNECTIONS


def test_what_a_url_is_for_is_taken_from_it() -> None:
    url = "rediss://me:s%2Fcret@redis:7/3?client_name=dp&socket_keepalive=yes&ssl_cert_reqs=none"
    pool = connections_to(url)
    assert pool.connection_class is SSLConnection
    expected = {"username": "me", "password": "s/cret", "db": 3, "client_name": "dp"}
    assert expected.items() <= pool.connection_kwargs.items()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://redis?foo=1", "must not have the option foo, which is unknown"),
        ("redis://redis?parser_class=x", "must not have the option parser_class, which is unknown"),
        ("unix:///tmp/x?connection_class=x", "must not have the option connection_class, which is unknown"),
        ("redis://redis?socket_timeout=abc", "Invalid value for 'socket_timeout'"),
        ("redis://redis?db=abc", "Invalid value for 'db'"),
        ("redis://redis/abc", "must end with the number of a database"),
        ("redis://redis?ssl_ca_certs=/x", "must begin with rediss:// for the option ssl_ca_certs"),
        ("rediss://redis?ssl_foo=1", "must not have an option that is unknown: .*'ssl_foo'"),
        ("rediss://redis?ssl_cert_reqs=maybe", "must have options that can be used: .* Flag: maybe"),
        ("rediss://redis?ssl_ca_certs=/nowhere", "must have options that can be used: .*No such file"),
        ("rediss://redis?ssl_min_version=5", ".*(?i:version)"),
        ("rediss://redis?ssl_ciphers=none", "must have options that can be used: .*(?i:cipher)"),
    ],
)
def test_what_would_break_the_client_is_refused(
    monkeypatch: pytest.MonkeyPatch, url: str, problem: str
) -> None:
    monkeypatch.setenv("DP_REDIS_URL", url)
    with pytest.raises(InvalidSettings, match=f"^DP_REDIS_URL: {problem}") as error:
        settings.load()
    assert "\n" not in str(error.value)
