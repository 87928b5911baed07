"""What a key set may hold, and which of its keys are used."""

import json
from typing import Any

import pytest
from joserfc.jwk import ECKey, OctKey

from deployment_pipeline.edge.identity import keys
from deployment_pipeline.edge.identity.keys import BadKeys
from support.issuer import FakeIssuer, base64url, rsa_key

SECRET_KEYS = [
    rsa_key().as_dict(private=True),
    ECKey.generate_key("P-256").as_dict(private=True),
    OctKey.generate_key(256).as_dict(private=True),
]


@pytest.mark.parametrize("jwk", SECRET_KEYS, ids=lambda jwk: jwk["kty"])
def test_a_key_that_should_be_secret_is_left_out_of_a_set(jwk: dict[str, Any], corp: FakeIssuer) -> None:
    good = corp.key_set()["keys"]
    found = keys.parse(json.dumps({"keys": [{**jwk, "kid": "secret"}, *good]}).encode())
    assert [key.kid for key in found.keys] == ["first"]
    with pytest.raises(BadKeys):
        keys.parse(json.dumps({"keys": [jwk]}).encode())


def test_keys_of_an_unknown_kind_do_not_spoil_a_set(corp: FakeIssuer) -> None:
    strange = [
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"},
        {"kty": "EC", "crv": "P-7", "x": "AA", "y": "AA"},
        {"kty": "RSA", "e": "AQAB"},
        {"kty": ["EC"]},
        "a text",
        None,
    ]
    found = keys.parse(json.dumps({"keys": [*strange, *corp.key_set()["keys"]]}).encode())
    assert [key.kid for key in found.keys] == ["first"]


@pytest.mark.parametrize("bits", [1024, 2047, 16384])
def test_rsa_keys_that_are_too_short_or_too_slow_are_left_out(bits: int) -> None:
    modulus = (1 << bits - 1 | 1).to_bytes((bits + 7) // 8, "big")
    jwk = {"kty": "RSA", "e": "AQAB", "n": base64url(modulus)}
    with pytest.raises(BadKeys):
        keys.parse(json.dumps({"keys": [jwk]}).encode())


@pytest.mark.parametrize("text", [b"[" * 60_000, b"\xff", b"", b" " * keys.MAX_SET_BYTES + b"x"])
def test_what_is_no_key_set_is_refused(text: bytes) -> None:
    with pytest.raises(BadKeys):
        keys.parse(text)


def test_a_set_has_a_bounded_length(corp: FakeIssuer) -> None:
    text = json.dumps(corp.key_set()).encode()
    assert keys.parse(text.ljust(keys.MAX_SET_BYTES))
    with pytest.raises(BadKeys, match="longer"):
        keys.parse(text.ljust(keys.MAX_SET_BYTES + 1))
