"""The embedded stores, in folders as people have them."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis as redis_client
from psycopg.conninfo import conninfo_to_dict

from deployment_pipeline.cli.problems import Unusable
from deployment_pipeline.cli.serving import _embedded_stores
from deployment_pipeline.run.embedded import CannotStart, Postgres, Redis
from deployment_pipeline.run.settings import Settings
from support.stores import scratch_folder


@pytest.fixture
def scratch() -> Iterator[Path]:
    with scratch_folder() as folder:
        yield folder


NAMES = [
    "a, b#c'd\"e%20f?g;h$i`j\\k&l:m=n@o",
    # Its characters would leave room for a socket's name, its bytes do not.
    "дела/" * 12,
]


@pytest.mark.parametrize("name", NAMES)
def test_any_folder_will_do(scratch: Path, name: str) -> None:
    folder = scratch / name
    with _embedded_stores(Settings(data_dir=folder)) as given:
        with psycopg.connect(given.database_url) as sql:
            [data] = sql.execute("SHOW data_directory").fetchone() or [""]
            assert data == str(folder / "postgres")
        with redis_client.Redis.from_url(given.redis_url) as client:
            assert client.config_get("dir") == {"dir": str(folder / "redis")}
        sockets = Path(str(conninfo_to_dict(given.database_url)["host"]))
        assert sockets.exists()
    assert not sockets.exists()


@pytest.mark.parametrize("store", [Postgres, Redis])
def test_where_no_socket_can_be_is_said(
    scratch: Path, store: type[Postgres | Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit = scratch / "a,b"
    unfit.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(unfit))
    with pytest.raises(CannotStart, match="can hold the embedded stores' sockets: set DP_DATA_DIR or TMPDIR"):
        store(unfit / "data")
    assert [path.name for path in unfit.iterdir()] == ["data"]


def test_a_folder_that_cannot_be_used_is_said(scratch: Path) -> None:
    taken = scratch / "taken"
    taken.write_text("a file")
    with (
        pytest.raises(Unusable, match=r"cannot use .*taken \(DP_DATA_DIR\): File exists: .*taken"),
        _embedded_stores(Settings(data_dir=taken)),
    ):
        pass
