"""What a JWT must be to prove something, and for how long a verification holds."""

import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey

from deployment_pipeline.edge.identity import jwts as module
from deployment_pipeline.edge.identity.claims import MAX_AHEAD_SECONDS, MAX_TOKEN_BYTES
from deployment_pipeline.edge.identity.issuer import ALGORITHMS
from deployment_pipeline.edge.identity.jwts import Jwts
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.edge.reloading import Unreadable
from support.issuer import FakeIssuer, base64url, compact, rsa_key, signer

NOW = int(time.time())
HOUR = 3600


@pytest.fixture
def corp() -> FakeIssuer:
    return FakeIssuer()


@pytest.fixture
def jwts(corp: FakeIssuer, tmp_path: Path) -> Jwts:
    """At NOW."""
    corp.clock = lambda: NOW
    return Jwts([corp.in_file(tmp_path / "corp.json", group_claim="groups")], corp.clock)


async def refused(jwts: Jwts, token: str) -> str:
    """Why."""
    with pytest.raises(NotProven) as error:
        await jwts.principal(token)
    assert jwts.known(token) is None
    return str(error.value)


async def test_a_valid_token_names_its_owner(corp: FakeIssuer, jwts: Jwts) -> None:
    token = corp.token(exp=NOW + HOUR, groups=["deployers", "ops"], name="Alice A.", repository_id="42")
    principal = await jwts.principal(token)
    assert (principal.id, principal.issuer) == ("corp#alice", "corp")
    assert (principal.groups, principal.display_name) == (("deployers", "ops"), "Alice A.")
    assert principal.claims["repository_id"] == "42"
    assert principal.expires_at == NOW + HOUR + 30
    assert jwts.known(token) is principal


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_algorithm_that_can_be_configured_works(
    algorithm: str, corp: FakeIssuer, tmp_path: Path
) -> None:
    corp.new_key("second", algorithm)
    jwts = Jwts([corp.in_file(tmp_path / "keys.json", algorithms=[algorithm])])
    assert (await jwts.principal(corp.token())).id == "corp#alice"


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": None}, "exp"),
        ({"exp": NOW - 60}, "expired"),
        ({"exp": NOW + MAX_AHEAD_SECONDS + HOUR}, "ahead"),
        ({"exp": 1e308}, "ahead"),
        ({"exp": 10**400}, "ahead"),
        ({"exp": True}, "exp"),
        ({"exp": str(NOW + HOUR)}, "exp"),
        ({"nbf": NOW + 60}, "not yet valid"),
        ({"nbf": True}, "nbf"),
        ({"iat": NOW + 60}, "future"),
        ({"iat": "yesterday"}, "iat"),
        ({"aud": None}, "iss and aud"),
        ({"aud": "billing"}, "iss and aud"),
        ({"aud": ["billing", "deployments-test"]}, "iss and aud"),
        ({"aud": ["deployments", 1]}, "aud"),
        ({"aud": {"deployments": True}}, "iss and aud"),
        ({"iss": None}, "iss and aud"),
        ({"iss": "https://other.example"}, "iss and aud"),
        ({"iss": "https://corp.example/"}, "iss and aud"),
        ({"iss": ["https://corp.example"]}, "iss and aud"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": 7}, "sub"),
        ({"sub": "alice\nbob"}, "sub"),
        ({"sub": "alice bob"}, "sub"),
        ({"sub": "älice"}, "sub"),
        ({"sub": "a" * 512}, "sub"),
        ({"groups": {"deployers": True}}, "groups"),
        ({"groups": ["deployers", 7]}, "groups"),
        ({"groups": ["\ud800"]}, "groups"),
        ({"groups": "\x1b[2J"}, "groups"),
    ],
)
async def test_claims_that_prove_nothing_are_refused(
    claims: dict[str, Any], why: str, corp: FakeIssuer, jwts: Jwts
) -> None:
    assert why in await refused(jwts, corp.token(**claims))


@pytest.mark.parametrize("constant", ["Infinity", "NaN", "1e400"])
async def test_an_exp_that_is_no_number_is_refused(constant: str, corp: FakeIssuer, jwts: Jwts) -> None:
    text = json.dumps(corp.claims(exp=1234567)).replace("1234567", constant)
    header = {"alg": "ES256", "kid": "first"}
    await refused(jwts, compact(header, text.encode(), signer("ES256", corp.keys["first"][1])))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW - 20},
        {"exp": NOW + MAX_AHEAD_SECONDS},
        {"exp": NOW + 60.5},
        {"nbf": NOW + 20},
        {"iat": NOW + 20},
        {"iat": None},
        {"aud": ["billing", "deployments"]},
        {"groups": None},
        {"groups": "deployers"},
    ],
)
async def test_what_is_within_the_rules_is_accepted(
    claims: dict[str, Any], corp: FakeIssuer, jwts: Jwts
) -> None:
    assert (await jwts.principal(corp.token(**claims))).id == "corp#alice"


@pytest.mark.parametrize("type", [None, "JWT", "jwt", "at+jwt", "application/at+jwt"])
async def test_the_types_of_access_tokens_are_accepted(
    type: str | None, corp: FakeIssuer, jwts: Jwts
) -> None:
    assert await jwts.principal(corp.token(header={"typ": type}))


@pytest.mark.parametrize("type", ["logout+jwt", "dpop+jwt", "", 7])
async def test_tokens_made_for_something_else_are_refused(type: object, corp: FakeIssuer, jwts: Jwts) -> None:
    assert "typ" in await refused(jwts, corp.token(header={"typ": type}))


@pytest.mark.parametrize("kid", [7, ["first"], {}])
async def test_a_kid_must_be_text(kid: object, corp: FakeIssuer, jwts: Jwts) -> None:
    assert "kid is no text" in await refused(jwts, corp.token(header={"kid": kid}))


@pytest.mark.parametrize("header", [["alg"], ["alg", "b64"], "alg", 7, None, {}, {"kid": "first"}])
async def test_a_header_without_an_algorithm_is_refused(header: object, corp: FakeIssuer, jwts: Jwts) -> None:
    await refused(jwts, compact(header, corp.claims(), signer("ES256", corp.keys["first"][1])))


async def test_a_wrong_signature_is_refused(corp: FakeIssuer, jwts: Jwts) -> None:
    header, _, signature = corp.token().split(".")
    forged = base64url(json.dumps(corp.claims(sub="mallory")).encode())
    assert "signature" in await refused(jwts, f"{header}.{forged}.{signature}")
    other = signer("ES256", ECKey.generate_key("P-256"))
    assert "signature" in await refused(jwts, compact({"alg": "ES256", "kid": "first"}, corp.claims(), other))


@pytest.mark.parametrize("algorithm", ["none", "None", "", "HS256"])
@pytest.mark.parametrize("kid", ["first", None])
async def test_a_token_without_a_signature_is_refused(
    algorithm: str, kid: str | None, corp: FakeIssuer, jwts: Jwts
) -> None:
    header = {"alg": algorithm} | ({"kid": kid} if kid else {})
    await refused(jwts, compact(header, corp.claims(), lambda _: b""))


async def test_a_public_key_is_no_secret_for_hmac(corp: FakeIssuer, tmp_path: Path) -> None:
    corp.new_key("rsa", "RS256")
    jwts = Jwts([corp.in_file(tmp_path / "keys.json")])
    jwk = json.dumps(corp.key_set()["keys"][1]).encode()
    for secret in (rsa_key().as_pem(private=False), rsa_key().as_der(private=False), jwk):

        def sign(text: bytes, secret: bytes = secret) -> bytes:
            return hmac.new(secret, text, hashlib.sha256).digest()

        await refused(jwts, compact({"alg": "HS256", "kid": "rsa"}, corp.claims(), sign))
        await refused(jwts, compact({"alg": "RS256", "kid": "rsa"}, corp.claims(), sign))


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp-at"], "exp-at": 1},
        {"crit": ["b64"], "b64": True},
        {"crit": []},
        {"crit": "kid"},
        {"crit": 7},
        {"crit": [["kid"]]},
    ],
)
async def test_no_extension_is_understood(header: dict[str, Any], corp: FakeIssuer, jwts: Jwts) -> None:
    await refused(jwts, corp.token(header=header))


async def test_an_encrypted_token_is_refused(corp: FakeIssuer, jwts: Jwts) -> None:
    header = base64url(json.dumps({"alg": "RSA-OAEP", "enc": "A256GCM", "kid": "first"}).encode())
    assert "JWE" in await refused(jwts, f"{header}.AAAA.AAAA.AAAA.AAAA")


async def test_a_token_has_at_most_8_kib(corp: FakeIssuer, jwts: Jwts) -> None:
    tokens = [corp.token(header={"fill": "x" * length}) for length in range(5500, 6000)]
    largest = max((token for token in tokens if len(token) <= MAX_TOKEN_BYTES), key=len)
    assert len(largest) >= MAX_TOKEN_BYTES - 1
    assert await jwts.principal(largest)
    larger = min((token for token in tokens if len(token) > MAX_TOKEN_BYTES), key=len)
    assert "longer than 8192" in await refused(jwts, larger)
    assert "longer than 8192" in await refused(jwts, "x" * (MAX_TOKEN_BYTES + 1))


async def test_without_a_kid_the_set_must_have_one_key(corp: FakeIssuer, tmp_path: Path) -> None:
    token = corp.token(header={"kid": None})
    assert await Jwts([corp.in_file(tmp_path / "one.json")]).principal(token)
    corp.new_key("second")
    assert "no kid" in await refused(Jwts([corp.in_file(tmp_path / "two.json")]), token)


async def test_only_the_keys_of_its_own_issuer_prove_a_token(corp: FakeIssuer, tmp_path: Path) -> None:
    """The same claims from another issuer that is trusted: with a kid of its own, and with the first's."""
    other = FakeIssuer("other")
    other.new_key("others")
    jwts = Jwts([corp.in_file(tmp_path / "corp.json"), other.in_file(tmp_path / "other.json")])
    assert (await jwts.principal(other.token())).id == "other#alice"
    assert "no key 'others'" in await refused(jwts, other.token(iss=corp.issuer))
    assert "signature" in await refused(jwts, other.token(iss=corp.issuer, header={"kid": "first"}))
    assert "signature" in await refused(jwts, other.token("first", iss=corp.issuer))


@pytest.mark.parametrize(
    "members", [{"alg": "ES384"}, {"use": "enc"}, {"key_ops": ["sign"]}, {"alg": "ECDH-ES"}]
)
async def test_a_key_verifies_only_what_it_is_for(
    members: dict[str, Any], corp: FakeIssuer, tmp_path: Path
) -> None:
    issuer = corp.in_file(tmp_path / "keys.json")
    keys = [{**corp.key_set()["keys"][0], **members}]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys}))
    await refused(Jwts([issuer]), corp.token())


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES384", "ES512", "Ed25519"])
async def test_an_algorithm_must_fit_the_key(algorithm: str, corp: FakeIssuer, tmp_path: Path) -> None:
    """The issuer's list has all of them, but the key that the token names is for ES256."""
    other = corp.new_key("second", algorithm)
    jwts = Jwts([corp.in_file(tmp_path / "keys.json", algorithms=ALGORITHMS)])
    header = {"alg": algorithm, "kid": "first"}
    await refused(jwts, compact(header, corp.claims(), signer(algorithm, other)))


async def test_an_algorithm_that_is_not_listed_is_refused_though_its_key_is(
    corp: FakeIssuer, tmp_path: Path
) -> None:
    corp.new_key("rsa", "RS512")
    jwts = Jwts([corp.in_file(tmp_path / "keys.json", algorithms=["RS256"])])
    assert "not allowed" in await refused(jwts, corp.token())


@pytest.mark.parametrize("kid", ["first", "attacker", None])
async def test_a_key_in_the_token_proves_nothing(kid: str | None, corp: FakeIssuer, jwts: Jwts) -> None:
    attacker = FakeIssuer("attacker")
    key = attacker.keys["first"][1]
    public = {**key.as_dict(private=False), "kid": kid or "first"}
    for where in ({"jwk": public}, {"jku": "https://127.0.0.1:1/keys"}, {"x5u": "https://127.0.0.1:1/cert"}):
        header = {"alg": "ES256", **({"kid": kid} if kid else {}), **where}
        await refused(jwts, compact(header, corp.claims(), signer("ES256", key)))


async def test_pointers_to_other_keys_are_ignored(corp: FakeIssuer, jwts: Jwts) -> None:
    public = FakeIssuer("attacker").key_set()["keys"][0]
    header = {"jku": "https://127.0.0.1:1/", "x5u": "https://127.0.0.1:1/", "jwk": public, "nonce": "…"}
    assert await jwts.principal(corp.token(header=header))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
HEADERS = st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "x5c", "cty"]), JSON)
CLAIMS = st.dictionaries(
    st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "groups", "name"]), JSON
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(header=HEADERS | JSON, claims=CLAIMS | JSON | st.binary(), is_usual=st.booleans())
async def test_nothing_that_is_sent_makes_anything_but_a_refusal(
    header: Any, claims: Any, is_usual: bool, corp: FakeIssuer, jwts: Jwts
) -> None:
    if is_usual and isinstance(header, dict):
        header = {"alg": "ES256", "kid": "first", **header}
    if is_usual and isinstance(claims, dict):
        claims = {**corp.claims(), **claims}
    try:
        principal = await jwts.principal(compact(header, claims, signer("ES256", corp.keys["first"][1])))
    except NotProven:
        return
    assert principal.id.startswith("corp#")


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b.c", "dpt_x", "ä.ö.ü", "\ud800", f"{base64url(b'[' * 5000)}.e30.", "e30.e30."],
)
async def test_what_is_no_jwt_is_refused(token: str, jwts: Jwts) -> None:
    with pytest.raises(NotProven):
        await jwts.principal(token)


async def test_claims_as_deep_as_a_token_allows_are_refused(corp: FakeIssuer, jwts: Jwts) -> None:
    deep = b'{"iss":' + b"[" * 5900
    assert "no JWT" in await refused(jwts, compact({"alg": "ES256"}, deep, lambda _: b"s"))


async def test_a_display_name_is_printable(corp: FakeIssuer, jwts: Jwts) -> None:
    hostile = corp.token(name="\x1b[2J", preferred_username=["a"], email="alice@corp.example")
    assert (await jwts.principal(hostile)).display_name == "alice@corp.example"
    assert (await jwts.principal(corp.token(name="\ud800"))).display_name == ""


async def test_another_claim_than_sub_can_be_the_id(corp: FakeIssuer, tmp_path: Path) -> None:
    jwts = Jwts([corp.in_file(tmp_path / "keys.json", id_claim="client_id")])
    assert (await jwts.principal(corp.token(sub=None, client_id="robot"))).id == "corp#robot"
    for other in (None, 7, ["robot"]):
        assert "client_id" in await refused(jwts, corp.token(client_id=other))


async def test_one_issuer_can_have_several_audiences_under_several_names(
    corp: FakeIssuer, tmp_path: Path
) -> None:
    people = corp.in_file(tmp_path / "keys.json")
    robots = corp.in_file(tmp_path / "keys.json", name="robots", audience="robots")
    jwts = Jwts([people, robots])
    assert (await jwts.principal(corp.token())).id == "corp#alice"
    assert (await jwts.principal(corp.token(aud="robots"))).id == "robots#alice"
    assert (await jwts.principal(corp.token(aud=["robots", "deployments"]))).id == "corp#alice"
    assert len(jwts.files) == 1


async def test_a_verification_holds_until_the_token_expires(corp: FakeIssuer, tmp_path: Path) -> None:
    now = float(NOW)
    corp.clock = lambda: now
    jwts = Jwts([corp.in_file(tmp_path / "keys.json")], clock=lambda: now)
    token = corp.token(exp=NOW + 60)
    principal = await jwts.principal(token)
    now = NOW + 60 + 30 - 0.01
    assert jwts.known(token) is principal
    now = principal.expires_at
    assert jwts.known(token) is None
    assert "expired" in await refused(jwts, token)
    now += 0.6
    assert "expired" in await refused(jwts, corp.token(exp=NOW + 60 + 0.5))


async def test_a_removed_key_takes_its_verified_tokens_with_it(corp: FakeIssuer, tmp_path: Path) -> None:
    corp.new_key("second")
    path = tmp_path / "keys.json"
    jwts = Jwts([corp.in_file(path)])
    first, second = corp.token("first"), corp.token("second")
    await jwts.principal(first)
    await jwts.principal(second)
    del corp.keys["first"]
    corp.in_file(path)
    jwts.files[0].look()
    assert "no key 'first'" in await refused(jwts, first)
    assert jwts.known(second) is None
    assert await jwts.principal(second) is jwts.known(second)


async def test_a_key_that_is_new_in_a_file_is_found_at_once(corp: FakeIssuer, tmp_path: Path) -> None:
    jwts = Jwts([corp.in_file(tmp_path / "keys.json")])
    corp.new_key("second")
    corp.in_file(tmp_path / "keys.json")
    assert await jwts.principal(corp.token("second"))
    assert await jwts.principal(corp.token("first"))


async def test_a_broken_key_file_leaves_the_keys_as_they_were(corp: FakeIssuer, tmp_path: Path) -> None:
    jwts = Jwts([corp.in_file(tmp_path / "keys.json")])
    token = corp.token()
    principal = await jwts.principal(token)
    (tmp_path / "keys.json").write_text('{"keys": [')
    jwts.files[0].look()
    assert jwts.known(token) is principal
    (tmp_path / "keys.json").unlink()
    jwts.files[0].look()
    assert jwts.known(token) is principal


async def test_verifications_are_forgotten_oldest_first(
    corp: FakeIssuer, jwts: Jwts, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.MAX_VERIFIED == 10_000
    monkeypatch.setattr(module, "MAX_VERIFIED", 3)
    tokens = [corp.token(sub=f"user-{number}") for number in range(5)]
    for token in tokens:
        await jwts.principal(token)
    assert [jwts.known(token) is not None for token in tokens] == [False, False, True, True, True]


async def test_verifications_of_long_tokens_are_forgotten_sooner(
    corp: FakeIssuer, jwts: Jwts, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [corp.token(sub=f"user-{number}") for number in range(5)]
    monkeypatch.setattr(module, "MAX_VERIFIED_BYTES", 3 * len(tokens[0]) + 3)
    for token in [tokens[0], *tokens]:
        await jwts.principal(token)
    assert [jwts.known(token) is not None for token in tokens] == [False, False, True, True, True]


def test_every_key_file_that_cannot_be_used_is_named(corp: FakeIssuer, tmp_path: Path) -> None:
    issuers = [
        FakeIssuer(name).in_file(tmp_path / f"{name}.json") for name in ("missing", "broken", "empty", "good")
    ]
    (tmp_path / "missing.json").unlink()
    (tmp_path / "broken.json").write_text("keys!")
    (tmp_path / "empty.json").write_text('{"keys": []}')
    with pytest.raises(Unreadable) as error:
        Jwts(issuers)
    lines = str(error.value).splitlines()
    assert [line.split("/")[-1].split(" ")[0] for line in lines] == [
        "broken.json",
        "empty.json",
        "missing.json",
    ]
