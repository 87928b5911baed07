"""SPIFFE ids: what is one, and of which trust domain."""

import pytest

from deployment_pipeline.edge.identity import spiffe
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.run import settings
from deployment_pipeline.run.settings import InvalidSettings


@pytest.mark.parametrize(
    "text",
    ["spiffe://corp/ci", "spiffe://c_o-r.p1/ns/Prod/sa/deploy-er_1.2", f"spiffe://corp/{'a' * 498}"],
)
def test_an_id_of_a_workload_is_one(text: str) -> None:
    spiffe.check(text, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "corp/ci",
        "https://corp/ci",
        "SPIFFE://corp/ci",
        "spiffe:/corp/ci",
        "spiffe:///ci",
        "spiffe://corp",  # a trust domain's own
        "spiffe://corp/",
        "spiffe://corp/ci/",
        "spiffe://corp//ci",
        "spiffe://Corp/ci",
        "spiffe://corp:443/ci",
        "spiffe://corp:/ci",
        "spiffe://user@corp/ci",
        "spiffe://corp/ci?admin",
        "spiffe://corp/ci#admin",
        "spiffe://corp/./ci",
        "spiffe://corp/ci/..",
        "spiffe://corp/ci/../admin",
        "spiffe://corp/%61dmin",
        "spiffe://corp/ci admin",
        "spiffe://corp/ci\n",
        "spiffe://corp/ci,spiffe://corp/admin",
        "spiffe://corp/çi",
        "spiffe://corp/c\u0131",
        f"spiffe://{'c' * 256}/ci",
        f"spiffe://corp/{'a' * 499}",  # longer than a principal's id may be
    ],
)
def test_what_is_none_proves_nothing(text: str) -> None:
    with pytest.raises(NotProven, match="is no SPIFFE id"):
        spiffe.check(text, "")


def test_an_id_of_another_trust_domain_proves_nothing() -> None:
    spiffe.check("spiffe://corp/ci", "corp")
    for text in ("spiffe://corp.example/ci", "spiffe://orp/ci", "spiffe://evil/corp/ci"):
        with pytest.raises(NotProven, match="is of another trust domain than corp"):
            spiffe.check(text, "corp")


@pytest.mark.parametrize("value", ["spiffe://corp", "spiffe://corp/a/../b", "10.0.0.1/8", "gateway"])
def test_only_ids_and_networks_can_be_believed(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DP_XFCC_FROM", f"spiffe://corp/gateway, 127.0.0.0/8, ::1, {value}")
    with pytest.raises(InvalidSettings, match=r"^DP_XFCC_FROM: must be SPIFFE ids or networks"):
        settings.load()
    monkeypatch.setenv("DP_XFCC_FROM", "spiffe://corp/gateway, 127.0.0.0/8, ::1,")
    assert settings.load().xfcc_from == "spiffe://corp/gateway,127.0.0.0/8,::1"
