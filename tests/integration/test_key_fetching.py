"""Key sets from a real https server on loopback, that may be broken, slow or hostile."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import trustme
import uvloop
from joserfc.jwk import ECKey

from deployment_pipeline.edge.identity import https, keys
from deployment_pipeline.edge.identity.issuer import Issuer
from deployment_pipeline.edge.identity.keys import KeyUrl
from support.issuer import HANGS_SECONDS, FakeIssuer, fetched, send


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
