import shlex
from pathlib import Path

import pytest

from deployment_pipeline.cli.main import _config
from deployment_pipeline.run import settings
from deployment_pipeline.run.settings import InvalidSettings, Settings
from deployment_pipeline.run.values import masked


def test_a_broken_url_is_reported_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DP_DATABASE_URL", "postgres+asyncpg://user:s3cret@db/dp")
    with pytest.raises(InvalidSettings) as error:
        settings.load()
    assert "s3cret" not in str(error.value)
    assert "postgres+asyncpg://db/dp" in str(error.value)


def test_a_broken_list_of_issuers_is_reported_without_the_password_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    issuer = '{"name":"corp","issuer":"i","audience":"a","jwks_url":"https://user:s3cret@corp.example/keys"}'
    monkeypatch.setenv("DP_JWT_ISSUERS", f"[{issuer}]")
    with pytest.raises(InvalidSettings) as error:
        settings.load()
    assert "without a user name" in str(error.value)
    assert "s3cret" not in str(error.value)


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
    assert "DP_DATABASE_URL=postgresql:///dp?host=/tmp/a b&port=1" in shlex.split(" ".join(lines))


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DP_DATABASE_URL", "postgresql://u:s3/cret@db/dp"),
        ("DP_DATABASE_URL", "postgresql://u:s3@cret@db/dp"),
        ("DP_DATABASE_URL", "postgresql://u:5/s3cret@db/dp"),
        ("DP_DATABASE_URL", "postgresql://u:s3cret/dp"),
        ("DP_DATABASE_URL", "postgresql://u:s3cret@db/dp\nand more"),
        ("DP_REDIS_URL", "redis://:s3/cret@redis"),
        ("DP_REDIS_URL", "redis://:s3?cret@redis"),
        ("DP_REDIS_URL", "redis://redis:s3cret"),
        ("DP_REDIS_URL", "redis://:5?s3cret@redis"),
    ],
)
def test_a_url_in_which_a_password_may_be_taken_for_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    monkeypatch.setenv(name, url)
    with pytest.raises(InvalidSettings, match=f"^{name}: must ") as error:
        settings.load()
    assert "s3" not in str(error.value)
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3%2Fcret@db:5432,[::1]:5433/dp?sslmode=require",
        "postgresql://u:s3?cr#et@db/dp",  # libpq takes everything up to the @
        "postgresql://%2Ftmp%2Fsockets/dp",
        "postgresql:///dp?host=/tmp&user=a@b",
        "postgresql://",
    ],
)
def test_a_url_that_libpq_reads_as_it_was_meant_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DP_DATABASE_URL", url)
    assert settings.load().database_url == url


@pytest.mark.parametrize("value", ["TRUE", "True", "yes", "ON", "1"])
def test_true_may_be_written_in_many_ways(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DP_PREPARE", "false")
    assert settings.load().prepare is False
    monkeypatch.setenv("DP_PREPARE", value)
    assert settings.load().prepare is True


URL = "postgresql://u:s3cret@db/dp"


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that DP_DATABASE_URL_FILE names."""
    file = tmp_path / "url"
    file.write_text(f"{URL}\n")
    file.chmod(0o640)
    monkeypatch.setenv("DP_DATABASE_URL_FILE", str(file))
    return file


def test_a_secret_may_be_in_a_file(secret: Path) -> None:
    loaded = settings.load()
    assert loaded.database_url == URL
    assert settings.exposed_files() == []
    assert f"DP_DATABASE_URL_FILE={secret}" in _config(loaded)
    assert "s3cret" not in "".join(_config(loaded))


def test_a_secret_that_everybody_can_read_is_told(secret: Path) -> None:
    secret.chmod(0o644)
    assert settings.load().database_url == URL
    assert settings.exposed_files() == [str(secret)]


def test_a_private_key_that_everybody_can_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "tls.key"
    monkeypatch.setenv("DP_TLS_KEY", str(key))
    assert settings.exposed_files() == []  # there is none: it is another problem
    key.touch(mode=0o640)
    assert settings.exposed_files() == []
    key.chmod(0o644)
    assert settings.exposed_files() == [str(key)]


def test_only_what_was_changed_goes_into_a_workers_environment(secret: Path) -> None:
    loaded = settings.load()
    changed = loaded.model_copy(update={"redis_url": "unix:///tmp/redis.sock"})
    assert settings.environment(changed, loaded) == {"DP_REDIS_URL": "unix:///tmp/redis.sock"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        (f"{URL}\n\n", "must be one line"),
        ("mysql://u:s3cret@db", "must be a URL that begins with postgresql://"),
        (b"\xff\xfe", "cannot be read: it is not UTF-8"),
    ],
)
def test_a_file_that_holds_no_url_is_reported(secret: Path, text: str | bytes | None, problem: str) -> None:
    if text is None:
        secret.unlink()
    else:
        secret.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidSettings, match=rf"^DP_DATABASE_URL_FILE: .*{problem}") as error:
        settings.load()
    assert "s3cret" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_value_and_a_file_are_too_many(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DP_DATABASE_URL", URL)
    with pytest.raises(InvalidSettings, match=r"^DP_DATABASE_URL_FILE: DP_DATABASE_URL is set, too"):
        settings.load()


def test_broken_issuers_are_reported_without_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    for broken in ('[{"jwks_url": "https://u:s3cret@corp"}]', "s3cret"):
        monkeypatch.setenv("DP_JWT_ISSUERS", broken)
        with pytest.raises(
            InvalidSettings, match=r"^DP_JWT_ISSUERS: must be a JSON list of issuers"
        ) as error:
            settings.load()
        assert "s3cret" not in str(error.value)
