import pytest

from deployment_pipeline.run import settings
from deployment_pipeline.run.settings import InvalidSettings, masked


def test_a_broken_url_is_reported_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DP_DATABASE_URL", "postgres+asyncpg://user:s3cret@db/dp")
    with pytest.raises(InvalidSettings) as error:
        settings.load()
    assert "s3cret" not in str(error.value)
    assert "postgres+asyncpg://user:***@db/dp" in str(error.value)


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
        ("postgresql://u:s3cret@db:5432/dp", "postgresql://u:***@db:5432/dp"),
        ("postgresql://u@db/dp", "postgresql://u@db/dp"),
        ("postgresql://u:s3c%2Fret@a,b/dp", "postgresql://u:***@a,b/dp"),
        ("postgresql:///dp?host=/tmp&password=s3cret", "postgresql:///dp?host=/tmp&password=***"),
        ("redis://:s3cret@redis:6379/0", "redis://:***@redis:6379/0"),
        ("unix:///tmp/redis", "unix:///tmp/redis"),
        ("redis://:p@ss@redis/0", "redis://:***@redis/0"),
    ],
)
def test_a_shown_url_holds_no_password(url: str, shown: str) -> None:
    assert masked(url) == shown
