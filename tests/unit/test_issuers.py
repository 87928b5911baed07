"""DP_JWT_ISSUERS."""

import json
from typing import Any

import pytest

from deployment_pipeline.run.values import read_issuers

GOOD = {
    "name": "corp",
    "issuer": "https://corp.example",
    "audience": "dp",
    "jwks_url": "https://corp.example/keys",
}


def read(*entries: dict[str, Any]) -> list[str]:
    return [issuer.name for issuer in read_issuers(json.dumps(entries))]


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": ["RS256"]},  # misspelt
        {"algorithms": []},
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": "RS256"},
        {"audience": ""},
        {"name": "token"},
        {"name": "a#b"},
        {"jwks_file": "/keys.json"},
        {"jwks_url": ""},
        {"jwks_url": "http://corp.example/keys"},
        {"jwks_url": "https://"},
        {"jwks_url": "https:///keys"},
        {"jwks_url": "https://user:secret@corp.example/keys"},
        {"jwks_url": "https://corp.example:port/keys"},
        {"jwks_url": "https://corp.example/a key"},
        {"jwks_url": "https://cörp.example/keys"},
    ],
)
def test_an_issuer_that_would_not_do_what_was_meant_is_refused(changes: dict[str, Any]) -> None:
    assert read(GOOD) == ["corp"]
    with pytest.raises(ValueError, match="must"):
        read({**GOOD, **changes})


def test_the_same_issuer_may_have_several_audiences() -> None:
    assert read(GOOD, {**GOOD, "name": "robots", "audience": "robots"}) == ["corp", "robots"]


def test_whom_a_token_names_is_never_ambiguous() -> None:
    with pytest.raises(ValueError, match="twice"):
        read(GOOD, {**GOOD, "name": "again"})
    with pytest.raises(ValueError, match="name"):
        read(GOOD, {**GOOD, "audience": "robots"})
