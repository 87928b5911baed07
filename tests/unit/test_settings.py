import shlex

import pytest

from deployment_pipeline.cli.main import _config
from deployment_pipeline.run import settings
from deployment_pipeline.run.settings import InvalidSettings, Settings, masked


def test_a_broken_url_is_reported_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DP_DATABASE_URL", "postgres+asyncpg://user:s3cret@db/dp")
    with pytest.raises(InvalidSettings) as error:
        settings.load()
    assert "s3cret" not in str(error.value)
    assert "postgres+asyncpg://db/dp" in str(error.value)


def test_the_defaults_are_valid() -> None:
    assert settings.load().listen == "127.0.0.1:50051"


def test_every_broken_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {
        "DP_LISTEN": "localhost",
        "DP_DATABASE_URL": "mysql://db",
        "DP_REDIS_URL": "http://redis",
        "DP_POOL_SIZE": "many",
        "DP_LEASE_MS": "0",
        "DP_LOG_LEVEL": "loud",
        "DP_DATABASE_URI": "a typo",
    }
    for name, value in broken.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings) as error:
        settings.load()
    lines = str(error.value).splitlines()
    assert {line.partition(":")[0] for line in lines} == set(broken)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:s3cret@db:5432/dp", "postgresql://db:5432/dp"),
        ("postgresql://u@db/dp", "postgresql://db/dp"),
        ("postgresql://u:s3c%2Fret@a:1,b:2/dp", "postgresql://a:1,b:2/dp"),
        ("postgresql://u:s3c@ret@[::1]:5432/dp", "postgresql://[::1]:5432/dp"),
        ("postgresql:///dp?host=/tmp&password=s3cret", "postgresql:///dp?host=/tmp"),
        ("postgresql://db/dp?sslpassword=s3cret&passfile=s3cret", "postgresql://db/dp"),
        ("redis://:s3cret@redis:6379/0", "redis://redis:6379/0"),
        ("unix:///tmp/redis", "unix:///tmp/redis"),
        ("", ""),
        # What cannot be read is not shown at all.
        ("postgresql://u:s3/cret@db/dp", "***"),
        ("postgresql://u:s3?cret@db/dp", "***"),
        ("postgresql://u:s3#cret@db/dp", "***"),
        ("redis://:s3/cret@redis", "***"),
        ("postgresql://u:s3cret/dp", "***"),
        ("host=db password=s3cret", "***"),
    ],
)
def test_a_shown_url_holds_no_secret(url: str, shown: str) -> None:
    assert masked(url) == shown
    assert "cret" not in shown


def test_what_kubernetes_injects_for_a_service_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("DP_PORT", "DP_SERVICE_HOST", "DP_SERVICE_PORT", "DP_SERVICE_PORT_GRPC"),
        *("DP_PORT_50051_TCP", "DP_PORT_50051_TCP_ADDR", "DP_PORT_50051_TCP_PROTO"),
    ):
        monkeypatch.setenv(name, "tcp://10.0.0.1:50051")
    settings.load()
    monkeypatch.setenv("DP_PORTS", "1")
    with pytest.raises(InvalidSettings, match="DP_PORTS: there is no such setting"):
        settings.load()


def test_a_log_level_may_be_written_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DP_LOG_LEVEL", "INFO")
    assert settings.load().log_level == "info"


def test_the_printed_settings_can_be_read_by_a_shell() -> None:
    given = Settings(database_url="postgresql:///dp?host=/tmp/a b&port=1")
    lines = [line for line in _config(given) if not line.startswith("#")]
    assert shlex.split(" ".join(lines))[1] == "DP_DATABASE_URL=postgresql:///dp?host=/tmp/a b&port=1"
