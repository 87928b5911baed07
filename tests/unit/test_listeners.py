"""DP_LISTEN: where the service listens, and how callers speak there."""

import pytest

from deployment_pipeline.edge.listeners import Listener, Mode, shown
from deployment_pipeline.run import settings
from deployment_pipeline.run.settings import InvalidSettings, Settings


def test_an_address_without_a_mode_has_that_of_dp_tls() -> None:
    both = Settings(listen="0.0.0.0:50051, plain://127.0.0.1:50052,tls://[::1]:50053", tls="mtls")
    assert both.listeners == [
        Listener(Mode.MTLS, "0.0.0.0:50051"),
        Listener(Mode.PLAIN, "127.0.0.1:50052"),
        Listener(Mode.TLS, "[::1]:50053"),
    ]


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        ("http://127.0.0.1:50051", "must have plain://, tls://, mtls:// or nothing before HOST:PORT"),
        ("://127.0.0.1:50051", "must have plain://"),
        ("TLS://127.0.0.1:50051", "must have plain://"),
        ("tls://127.0.0.1", "must be HOST:PORT"),
        ("tls://:50051", "must be HOST:PORT"),
        ("127.0.0.1:50051,", "must be HOST:PORT"),
        ("127.0.0.1:50051,tls://127.0.0.1:65536", "must have a port of 0 to 65535"),
        # They would share the connections that arrive.
        ("plain://127.0.0.1:50051,mtls://127.0.0.1:50051", "must name each port once"),
        ("plain://127.0.0.1:50051,mtls://0.0.0.0:50051", "must name each port once"),
    ],
)
def test_a_listener_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, listen: str, problem: str
) -> None:
    monkeypatch.setenv("DP_LISTEN", listen)
    with pytest.raises(InvalidSettings, match=f"^DP_LISTEN: {problem}"):
        settings.load()


def test_port_0_may_be_named_more_than_once() -> None:
    assert len(Settings(listen="127.0.0.1:0,tls://127.0.0.1:0").listeners) == 2


def test_a_single_plain_one_is_shown_as_it_always_was() -> None:
    plain, mtls = Listener(Mode.PLAIN, "127.0.0.1:1"), Listener(Mode.MTLS, "[::1]:0")
    assert shown([plain]) == "127.0.0.1:1"
    assert shown([mtls.on(2)]) == "mtls://[::1]:2"
    assert shown([plain, mtls.on(2)]) == "plain://127.0.0.1:1,mtls://[::1]:2"
