"""The keys of issuers: fetched from a real https server on loopback, that may be broken, slow or hostile."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import trustme
import uvloop
from joserfc.jwk import ECKey, OctKey

from deployment_pipeline import call
from deployment_pipeline.edge.identity import https, keys
from deployment_pipeline.edge.identity.issuer import Issuer
from deployment_pipeline.edge.identity.jwts import Jwts
from deployment_pipeline.edge.identity.keys import BadKeys, KeyUrl
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.refusals import KeysUnavailable
from support.issuer import FakeIssuer, base64url, compact, rsa_key, send, signer

# For a machine that stalls: whatever hangs ends the test.
HANGS_SECONDS = 20


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def _trusts(ca: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ca.cert_pem.tempfile() as path:
        monkeypatch.setenv("SSL_CERT_FILE", path)
        yield


@pytest.fixture
def corp() -> FakeIssuer:
    return FakeIssuer()


@pytest.fixture
def entry(corp: FakeIssuer, ca: trustme.CA) -> Iterator[Issuer]:
    with corp.serving(ca) as entry:
        yield entry


@asynccontextmanager
async def kept(*entries: Issuer) -> AsyncIterator[Jwts]:
    """Their keys are fetched now and then, as in a server."""
    jwts = Jwts(entries)
    keeping = asyncio.create_task(jwts.keep())
    try:
        async with asyncio.timeout(HANGS_SECONDS):
            yield jwts
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        assert keeping.cancelled()


async def fetched(entry: Issuer) -> tuple[KeyUrl, bool]:
    """A key set after one fetch, and whether that went well."""
    source = KeyUrl(entry.jwks_url)
    async with asyncio.timeout(HANGS_SECONDS):
        return source, await source.fetch()


async def test_a_token_can_be_verified_as_soon_as_there_are_keys(corp: FakeIssuer, entry: Issuer) -> None:
    async with kept(entry) as jwts:
        assert (await jwts.principal(corp.token())).id == "corp#alice"


async def test_the_start_does_not_wait_for_keys(corp: FakeIssuer, entry: Issuer) -> None:
    Jwts([entry])
    assert corp.fetches == 0


async def test_without_keys_nothing_is_known_of_a_token(corp: FakeIssuer, entry: Issuer) -> None:
    corp.answer = lambda handler: send(handler, b"out of order", 503)
    async with kept(entry) as jwts:
        with pytest.raises(KeysUnavailable) as error:
            await jwts.principal(corp.token())
        assert error.value.issuer == "corp"
        with pytest.raises(NotProven):
            await jwts.principal(corp.token(exp=1))


async def test_whoever_waits_for_the_first_keys_hears_of_them_at_once(entry: Issuer) -> None:
    source = KeyUrl(entry.jwks_url)
    async with asyncio.timeout(HANGS_SECONDS):
        waiting = asyncio.create_task(source.refresh(10 * HANGS_SECONDS))
        assert await source.fetch()
        assert await waiting


async def test_whoever_waits_for_the_first_keys_hears_that_there_are_none(
    corp: FakeIssuer, entry: Issuer
) -> None:
    corp.answer = lambda handler: send(handler, b"out of order", 503)
    source = KeyUrl(entry.jwks_url)
    async with asyncio.timeout(HANGS_SECONDS):
        waiting = asyncio.create_task(source.refresh(10 * HANGS_SECONDS))
        assert not await source.fetch()
        assert not await waiting


async def test_a_server_that_is_away_makes_keys_unavailable(corp: FakeIssuer, ca: trustme.CA) -> None:
    with corp.serving(ca) as entry:
        pass
    async with kept(entry) as jwts:
        with pytest.raises(KeysUnavailable):
            await jwts.principal(corp.token())


async def test_a_flood_of_kids_causes_one_fetch(corp: FakeIssuer, entry: Issuer) -> None:
    """Beside the one that the start makes."""
    async with kept(entry) as jwts:
        await jwts.principal(corp.token())
        assert corp.fetches == 1
        tokens = [corp.token(header={"kid": f"kid-{number}"}) for number in range(200)]
        answers = await asyncio.gather(*map(jwts.principal, tokens), return_exceptions=True)
        assert {type(answer) for answer in answers} == {NotProven}
        for token in tokens:
            with pytest.raises(NotProven):
                await jwts.principal(token)
        assert corp.fetches == 2


async def test_a_flood_of_kids_at_the_start_causes_no_fetch_of_its_own(
    corp: FakeIssuer, entry: Issuer
) -> None:
    async with kept(entry) as jwts:
        tokens = [corp.token(header={"kid": f"kid-{number}"}) for number in range(20)]
        await asyncio.gather(*map(jwts.principal, tokens), return_exceptions=True)
        assert corp.fetches == 1
        assert await jwts.principal(corp.token())


async def test_a_flood_while_the_issuer_is_away_causes_one_fetch(corp: FakeIssuer, entry: Issuer) -> None:
    """And whoever has a key that is new hears that he should try again."""
    async with kept(entry) as jwts:
        await jwts.principal(corp.token())
        corp.answer = lambda handler: send(handler, b"out of order", 503)
        for number in range(20):
            with pytest.raises(KeysUnavailable):
                await jwts.principal(corp.token(header={"kid": f"kid-{number}"}))
        assert corp.fetches == 2
        assert await jwts.principal(corp.token(sub="bob"))


async def test_unknown_kids_cause_another_fetch_after_the_pause(
    corp: FakeIssuer, entry: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keys.PAUSE_SECONDS == 30
    source, _ = await fetched(entry)
    for _ in range(3):
        assert await source.refresh(HANGS_SECONDS)
    assert corp.fetches == 2
    monkeypatch.setattr(keys, "PAUSE_SECONDS", 0)
    assert await source.refresh(HANGS_SECONDS)
    assert corp.fetches == 3


async def test_no_call_fails_while_keys_rotate(corp: FakeIssuer, entry: Issuer) -> None:
    """The issuer signs with a new key at once; tokens of the old one are still about."""
    async with kept(entry) as jwts:
        old = [corp.token(sub=f"old-{number}") for number in range(40)]
        await jwts.principal(old[0])
        corp.new_key("second")
        new = [corp.token(sub=f"new-{number}") for number in range(40)]
        mixed = [token for pair in zip(old, new, strict=True) for token in pair]
        found = await asyncio.gather(*map(jwts.principal, mixed))
        assert [principal.id[:8] for principal in found] == ["corp#old", "corp#new"] * 40


async def test_a_key_that_the_issuer_withdrew_takes_its_tokens_with_it(
    corp: FakeIssuer, entry: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "PAUSE_SECONDS", 0)
    async with kept(entry) as jwts:
        token = corp.token("first")
        principal = await jwts.principal(token)
        assert jwts.known(token) is principal
        corp.new_key("second")
        del corp.keys["first"]
        await jwts.principal(corp.token())
        assert jwts.known(token) is None
        with pytest.raises(NotProven):
            await jwts.principal(token)


async def test_the_same_set_keeps_what_was_verified_with_it(
    corp: FakeIssuer, entry: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "PAUSE_SECONDS", 0)
    source, _ = await fetched(entry)
    first = source.value
    assert await source.refresh(HANGS_SECONDS)
    assert (source.value, corp.fetches) == (first, 2)


async def test_keys_are_fetched_now_and_then(
    corp: FakeIssuer, entry: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "REFRESH_SECONDS", 0.01)
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    def count(handler: BaseHTTPRequestHandler) -> None:
        if corp.fetches == 4:
            loop.call_soon_threadsafe(enough.set)
        send(handler, json.dumps(corp.key_set()).encode())

    corp.answer = count
    async with kept(entry):
        await enough.wait()


def redirect(handler: BaseHTTPRequestHandler) -> None:
    if handler.path == "/keys":
        send(handler, b"", 302, Location="/elsewhere")
    else:
        send(handler, json.dumps(FakeIssuer().key_set()).encode())


def large(handler: BaseHTTPRequestHandler) -> None:
    """A good set, in more bytes than are taken."""
    text = json.dumps(FakeIssuer().key_set()).encode()
    send(handler, text.ljust(keys.MAX_SET_BYTES + 1))


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Without a length."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def crowded(handler: BaseHTTPRequestHandler) -> None:
    jwk = ECKey.generate_key("P-256").as_dict(private=False)
    send(handler, json.dumps({"keys": [{**jwk, "kid": str(number)} for number in range(21)]}).encode())


def cut(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(json.dumps(FakeIssuer().key_set()).encode())


def deaf(handler: BaseHTTPRequestHandler) -> None:
    """It hangs up."""


BROKEN = [
    redirect,
    large,
    endless,
    crowded,
    cut,
    deaf,
    lambda handler: send(handler, b"<html>"),
    lambda handler: send(handler, b"[" * 60_000),
    lambda handler: send(handler, b"[]"),
    lambda handler: send(handler, b'{"keys": {}}'),
    lambda handler: send(handler, b'{"keys": []}'),
    lambda handler: send(handler, b'{"keys": [7, {}, {"kty": "EC", "crv": "P-7", "x": "", "y": ""}]}'),
    lambda handler: send(handler, json.dumps(FakeIssuer().key_set()).encode(), 500),
    lambda handler: send(handler, json.dumps(FakeIssuer().key_set()).encode(), 206),
]


@pytest.mark.parametrize("answer", BROKEN)
async def test_an_answer_that_is_not_taken_leaves_the_last_good_set(
    answer: Any, corp: FakeIssuer, entry: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "PAUSE_SECONDS", 0)
    source, is_good = await fetched(entry)
    good = source.value
    assert (is_good, good is not None) == (True, True)
    corp.answer = answer
    assert not await source.refresh(HANGS_SECONDS)
    assert source.value is good
    assert corp.fetches == 2


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("part", ["head", "body"])
async def test_a_server_that_drips_is_cut_off(
    part: str, run: Any, corp: FakeIssuer, entry: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends a byte before any time-out that starts again with each byte has ended. On both event loops."""
    assert keys.FETCH_SECONDS == 5
    monkeypatch.setattr(keys, "FETCH_SECONDS", 0.5)
    was_cut_off, stop = threading.Event(), threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        if part == "body":
            handler.send_response(200)
            handler.end_headers()
        try:
            while not stop.wait(0.01):
                handler.wfile.write(b"H")
        except OSError:
            was_cut_off.set()

    corp.answer = drip
    try:
        source, is_good = await asyncio.to_thread(run, fetched(entry))
        assert (source.value, is_good) == (None, False)
        assert await asyncio.to_thread(was_cut_off.wait, HANGS_SECONDS)
    finally:
        stop.set()


async def test_a_server_that_does_not_shake_hands_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "FETCH_SECONDS", 0.2)
    hung_up = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        hung_up.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server, asyncio.timeout(HANGS_SECONDS):
        source = KeyUrl(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        assert not await source.fetch()
        await hung_up.wait()


async def test_only_so_many_calls_wait_for_keys(
    corp: FakeIssuer, entry: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployment_pipeline.edge.identity.jwts.MAX_WAITING", 2)
    asked, go_on = threading.Event(), threading.Event()

    def late(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        go_on.wait(HANGS_SECONDS)
        send(handler, json.dumps(corp.key_set()).encode())

    corp.answer = late
    async with kept(entry) as jwts:
        waiting = [asyncio.create_task(jwts.principal(corp.token())) for _ in range(2)]
        await asyncio.to_thread(asked.wait)
        with pytest.raises(KeysUnavailable):
            await jwts.principal(corp.token())
        assert not any(task.done() for task in waiting)
        go_on.set()
        assert await asyncio.gather(*waiting)
        assert await jwts.principal(corp.token())


async def test_a_call_waits_for_keys_no_longer_than_it_may(corp: FakeIssuer, entry: Issuer) -> None:
    """And what it waited for goes on, for those after it."""
    go_on = threading.Event()

    def late(handler: BaseHTTPRequestHandler) -> None:
        go_on.wait(HANGS_SECONDS)
        send(handler, json.dumps(corp.key_set()).encode())

    corp.answer = late
    async with kept(entry) as jwts:

        async def hurried() -> None:
            call.begin(0.1)
            with pytest.raises(KeysUnavailable):
                await jwts.principal(corp.token())

        await asyncio.create_task(hurried())  # a context of its own
        go_on.set()
        assert await jwts.principal(corp.token())
        corp.new_key("second")
        go_on.clear()
        await asyncio.create_task(hurried())
        go_on.set()
        assert await jwts.principal(corp.token())
        assert corp.fetches == 2


async def test_a_certificate_of_another_ca_is_not_trusted(corp: FakeIssuer) -> None:
    with corp.serving(trustme.CA()) as entry:
        source, is_good = await fetched(entry)
    assert (source.value, is_good, corp.fetches) == (None, False, 0)


async def test_a_certificate_for_another_host_is_not_trusted(corp: FakeIssuer, entry: Issuer) -> None:
    source = KeyUrl(entry.jwks_url.replace("127.0.0.1", "localhost"))
    assert not await source.fetch()
    assert corp.fetches == 0


async def test_a_proxy_of_the_environment_is_not_asked(
    corp: FakeIssuer, entry: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    _, is_good = await fetched(entry)
    assert is_good


async def test_nobody_asks_where_a_token_says_its_key_is(
    corp: FakeIssuer, entry: Issuer, ca: trustme.CA
) -> None:
    attacker = FakeIssuer("attacker")
    with attacker.serving(ca) as theirs:
        for where in ("jku", "x5u"):
            async with kept(entry) as jwts:
                header = {"alg": "ES256", "kid": "first", where: theirs.jwks_url}
                with pytest.raises(NotProven):
                    await jwts.principal(
                        compact(header, corp.claims(), signer("ES256", attacker.keys["first"][1]))
                    )
    assert attacker.fetches == 0


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


async def test_no_more_is_read_of_an_answer_than_is_taken(corp: FakeIssuer, entry: Issuer) -> None:
    corp.answer = lambda handler: send(handler, b"x" * 100)
    assert await https.get(entry.jwks_url, 100) == b"x" * 100
    with pytest.raises(https.Refused, match="longer than 99"):
        await https.get(entry.jwks_url, 99)
    corp.answer = endless
    async with asyncio.timeout(HANGS_SECONDS):
        with pytest.raises(https.Refused, match="longer"):
            await https.get(entry.jwks_url, 100)


async def test_the_path_and_the_query_are_asked_for(corp: FakeIssuer, entry: Issuer) -> None:
    seen: list[str] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        seen.append(f"{handler.path} {handler.headers['Host']}")
        send(handler, b"{}")

    corp.answer = note
    url = f"{entry.jwks_url}?tenant=a%20b"
    assert await https.get(url, 100) == b"{}"
    assert seen == [f"/keys?tenant=a%20b {url.split('/')[2]}"]


async def test_an_answer_in_chunks_is_put_together(corp: FakeIssuer, entry: Issuer) -> None:
    def chunked(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"2\r\n{ \r\n1\r\n}\r\n0\r\n\r\n")

    corp.answer = chunked
    assert await https.get(entry.jwks_url, 100) == b"{ }"


async def test_two_audiences_of_an_issuer_share_its_key_set(corp: FakeIssuer, entry: Issuer) -> None:
    other = Issuer(name="robots", issuer=corp.issuer, audience="robots", jwks_url=entry.jwks_url)
    async with kept(entry, other) as jwts:
        await jwts.principal(corp.token())
        assert (await jwts.principal(corp.token(aud="robots"))).id == "robots#alice"
    assert corp.fetches == 1
