"""The keys of issuers, from a real https server on loopback: when they are fetched, who waits for them."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler

import pytest
import trustme

from deployment_pipeline import call
from deployment_pipeline.edge.identity import keys
from deployment_pipeline.edge.identity.issuer import Issuer
from deployment_pipeline.edge.identity.jwts import Jwts
from deployment_pipeline.edge.identity.keys import KeyUrl
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.refusals import KeysUnavailable
from support.issuer import HANGS_SECONDS, FakeIssuer, compact, fetched, send, signer


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


async def test_two_audiences_of_an_issuer_share_its_key_set(corp: FakeIssuer, entry: Issuer) -> None:
    other = Issuer(name="robots", issuer=corp.issuer, audience="robots", jwks_url=entry.jwks_url)
    async with kept(entry, other) as jwts:
        await jwts.principal(corp.token())
        assert (await jwts.principal(corp.token(aud="robots"))).id == "robots#alice"
    assert corp.fetches == 1
