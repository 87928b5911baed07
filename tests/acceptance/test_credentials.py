"""Which credential decides, what a caller is told if it proves nothing, and how keys and files change."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from structlog.testing import capture_logs

from deployment_pipeline.edge import reloading
from deployment_pipeline.edge.identity.issuer import Issuer
from deployment_pipeline.run.settings import Settings
from support import attacks
from support.clients import Client, Refused, TypedClient
from support.issuer import FakeIssuer, settings_of
from support.secured import As, Files, grant, secured, token
from support.servers import server
from support.steps import outcome, refusal
from support.stores import Stores

SOON_SECONDS = 0.02


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setattr(reloading, "LOOK_SECONDS", SOON_SECONDS)
    made = Files(tmp_path)
    made.write_tokens({"one": [], "other": []})
    made.write_grants(grant('id = "*"', "admin"))
    return made


def bearer(*tokens: str, scheme: str = "Bearer") -> tuple[tuple[str, str], ...]:
    return tuple(("authorization", f"{scheme} {token}") for token in tokens)


async def who(client: Client, metadata: tuple[tuple[str, str], ...] = ()) -> str:
    return str((await client.call("GetServerInfo", metadata=metadata)).principal)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await holds():  # noqa: ASYNC110  # files are looked at now and then
            await asyncio.sleep(SOON_SECONDS)


async def test_each_way_in_gives_a_name(settings: Settings, files: Files, tmp_path: Path) -> None:
    corp = FakeIssuer()
    entry = corp.in_file(tmp_path / "keys.json")
    async with secured(settings, files, jwt_issuers=settings_of(entry)) as channel:
        client = TypedClient(channel)
        assert await who(client, bearer(corp.token())) == "corp#alice"
        assert await who(client, bearer(corp.token())) == "corp#alice"
        assert await who(client, bearer(token("one"))) == "token:one"
        assert await who(client, bearer(corp.token(), scheme="bearer")) == "corp#alice"


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer(""),
        bearer("dpt_nobody"),
        bearer("not.a.token"),
        bearer(token("one"), scheme="Basic"),
        bearer(token("one"), scheme="Digest"),
        (("authorization", token("one")),),
        (*bearer(token("one")), *bearer(token("one"))),
        (*bearer(token("one")), ("authorization", "")),
        (("x-forwarded-client-cert", "URI=spiffe://corp/gateway"),),
    ],
)
async def test_whoever_proves_nothing_is_told_the_ways_in_and_not_what_was_wrong(
    settings: Settings, files: Files, metadata: tuple[tuple[str, str], ...]
) -> None:
    corp = FakeIssuer()
    entry = corp.in_file(files.folder / "keys.json")
    async with secured(settings, files, jwt_issuers=settings_of(entry)) as channel:
        refused = await refusal(TypedClient(channel).call("ListPipelines", metadata=metadata))
    assert (refused.code, refused.reason) == (StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert "authorization: Bearer with a JWT" in refused.message
    assert "dpt_" in refused.message
    assert "certificate" not in refused.message
    assert set(refused.facts) == {"ways"}


async def test_every_broken_token_gets_the_same_answer(
    settings: Settings, files: Files, tmp_path: Path
) -> None:
    corp, other = FakeIssuer(), FakeIssuer("other")
    issuers = settings_of(corp.in_file(tmp_path / "corp.json"), other.in_file(tmp_path / "other.json"))
    stranger = FakeIssuer()  # of the same name, with other keys
    broken = [
        stranger.token(),
        corp.token(exp=1),
        corp.token(nbf=4_000_000_000),
        corp.token(aud="others"),
        corp.token(iss="https://nowhere.example"),
        corp.token(exp=None),
        corp.token(exp=1e308),
        corp.token(header={"alg": "none"}),
        corp.token(header={"crit": ["x"], "x": 1}),
        # The claims of one issuer, signed by another.
        other.token(iss=corp.issuer),
        "a.b.c.d.e",
        corp.token(more="x" * 8192),
    ]
    async with secured(settings, files, jwt_issuers=issuers) as channel:
        client = TypedClient(channel)
        refusals = [await refusal(client.call("ListPipelines", metadata=bearer(one))) for one in broken]
        assert {(one.code, one.message, str(one.details)) for one in refusals} == {
            (StatusCode.UNAUTHENTICATED, refusals[0].message, str(refusals[0].details))
        }
        assert await who(client, bearer(corp.token())) == "corp#alice"


async def test_the_same_claims_from_another_issuer_do_not_match_a_grant(
    settings: Settings, files: Files, tmp_path: Path
) -> None:
    forge, corp = FakeIssuer("forge"), FakeIssuer()
    entries = (forge.in_file(tmp_path / "forge.json"), corp.in_file(tmp_path / "corp.json"))
    files.write_grants(grant('issuer = "forge", claim = { repository_id = "42" }', "admin"))
    async with secured(settings, files, jwt_issuers=settings_of(*entries)) as channel:
        client = TypedClient(channel)
        claims: dict[str, Any] = {"repository_id": "42"}
        await client.call("ListPipelines", metadata=bearer(forge.token(**claims)))
        refused = await refusal(client.call("ListPipelines", metadata=bearer(corp.token(**claims))))
        assert refused.reason == "PERMISSION_DENIED"


async def test_what_is_wrong_with_a_token_is_in_the_log_and_the_token_is_not(
    stores: Stores, files: Files
) -> None:
    corp = FakeIssuer()
    environment = {
        "DP_JWT_ISSUERS": settings_of(corp.in_file(files.folder / "keys.json")),
        "DP_GRANTS_FILE": str(files.grants),
    }
    expired, good = corp.token(exp=1), corp.token()
    with (files.folder / "log").open("a+") as log:
        with server(stores, environment, log) as running:
            async with grpc.aio.insecure_channel(running.address) as channel:
                client = TypedClient(channel)
                await refusal(client.call("ListPipelines", metadata=bearer(expired)))
                await client.call("ListPipelines", metadata=bearer(good))
            running.stop()
        log.seek(0)
        text = log.read()
    refused, carried_out = [line for line in map(json.loads, text.splitlines()) if line["event"] == "call"]
    assert refused["refusal"]["reason"] == "UNAUTHENTICATED"
    assert "exp" in refused["refusal"]["why"]
    assert "principal" not in refused
    assert carried_out["principal"] == "corp#alice"
    assert expired not in text
    assert good not in text


def test_metadata_that_is_no_utf8_is_not_written_down(stores: Stores, files: Files) -> None:
    environment = {"DP_TOKENS_FILE": str(files.tokens), "DP_GRANTS_FILE": str(files.grants)}
    with (files.folder / "log").open("a+") as log:
        with server(stores, environment, log) as running:
            odd = [(f"x-{number}", b"\xff") for number in range(100)]
            credential = f"Bearer {token('one')}".encode() + b"\xff"
            attacks.call(running.address, "ListPipelines", b"", ("authorization", credential), *odd)
            running.stop()
        log.seek(0)
        text = log.read()
    events = sorted(line["event"] for line in map(json.loads, text.splitlines()))
    assert events == ["call", "serving", "stopping"]
    assert token("one") not in text


async def test_without_keys_the_issuers_tokens_are_asked_to_wait(settings: Settings, files: Files) -> None:
    corp = FakeIssuer()
    away = Issuer(
        name="corp", issuer=corp.issuer, audience=corp.audience, jwks_url="https://127.0.0.1:9/keys"
    )
    async with secured(settings, files, jwt_issuers=settings_of(away)) as channel:
        client = TypedClient(channel)
        refused = await refusal(client.call("ListPipelines", metadata=bearer(corp.token())))
        assert (refused.code, refused.reason) == (StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE")
        assert (refused.facts["issuer"], "RetryInfo" in refused.details) == ("corp", True)
        assert await who(client, bearer(token("one"))) == "token:one"


async def test_keys_rotate_under_load_and_no_call_fails(settings: Settings, files: Files) -> None:
    corp = FakeIssuer()
    path = files.folder / "keys.json"
    entry = corp.in_file(path)
    async with secured(settings, files, jwt_issuers=settings_of(entry)) as channel:
        client, over = TypedClient(channel), False
        failed: list[Refused] = []
        made, signing = 0, "first"

        async def load() -> None:
            nonlocal made
            while not over:
                result = await outcome(client.call("ListPipelines", metadata=bearer(corp.token(signing))))
                failed.extend([result] if isinstance(result, Refused) else [])
                made += 1

        loads = [asyncio.create_task(load()) for _ in range(8)]
        corp.new_key("used at once")
        corp.in_file(path)
        signing = "used at once"
        for number in range(4):
            new = f"published before it is used {number}"
            corp.new_key(new)
            corp.in_file(path)

            async def is_known(new: str = new) -> bool:
                asked = client.call("ListPipelines", metadata=bearer(corp.token(new)))
                return not isinstance(await outcome(asked), Refused)

            await eventually(is_known)
            signing, before = new, made
            await eventually(lambda before=before: _true(made > before + 20))  # type: ignore[misc]
        over = True
        await asyncio.gather(*loads)
    assert failed == []


async def _true(value: bool) -> bool:
    return value


async def test_a_token_that_is_taken_out_of_the_file_is_refused(settings: Settings, files: Files) -> None:
    async with secured(settings, files) as channel:
        one, other = As(channel, "one"), As(channel, "other")
        await one.call("ListPipelines")
        files.write_tokens({"other": []})

        async def is_refused() -> bool:
            return isinstance(await outcome(one.call("ListPipelines")), Refused)

        await eventually(is_refused)
        assert (await refusal(one.call("ListPipelines"))).reason == "UNAUTHENTICATED"
        await other.call("ListPipelines")


async def test_grants_change_while_it_runs_and_a_broken_file_leaves_the_last_good_ones(
    settings: Settings, files: Files
) -> None:
    async with secured(settings, files) as channel:
        one = As(channel, "one")
        await one.call("ListPipelines")

        with capture_logs() as said:
            files.write_grants(grant('id = "*"', "admin") + "[[grant]]\nrole = 'root'\n")
            await eventually(lambda: _true(bool(said)))
        assert said[0]["log_level"] == "error"
        assert "grants.toml: grant 2: role must be" in said[0]["error"]
        assert "what they said before holds" in said[0]["event"]
        await one.call("ListPipelines")

        files.write_grants(grant('id = "token:other"', "viewer"))

        async def is_denied() -> bool:
            return isinstance(await outcome(one.call("ListPipelines")), Refused)

        await eventually(is_denied)
        assert (await refusal(one.call("ListPipelines"))).reason == "PERMISSION_DENIED"
        await As(channel, "other").call("ListPipelines")

        with capture_logs() as said:
            files.grants.unlink()
            await eventually(lambda: _true(bool(said)))
        await As(channel, "other").call("ListPipelines")


@pytest.mark.parametrize("anonymous", ["none", "viewer", "admin"])
async def test_anonymous_callers_may_what_the_setting_says(
    settings: Settings, files: Files, anonymous: str, new_name: Callable[[], str]
) -> None:
    async with secured(settings, files, anonymous=anonymous) as channel:
        nobody = TypedClient(channel)
        create = await outcome(nobody.call("CreatePipeline", name=new_name(), stages=["a"]))
        listed = await outcome(nobody.call("ListPipelines"))
        reasons = [one.reason if isinstance(one, Refused) else "OK" for one in (create, listed)]
        assert (
            reasons
            == {
                "none": ["UNAUTHENTICATED", "UNAUTHENTICATED"],
                "viewer": ["PERMISSION_DENIED", "OK"],
                "admin": ["OK", "OK"],
            }[anonymous]
        )
        # Who sends a credential is judged by it, be the anonymous allowed more or not.
        guess = await outcome(nobody.call("ListPipelines", metadata=bearer("dpt_guess")))
        assert isinstance(guess, Refused)
        files.write_grants(grant('id = "token:other"', "viewer"))

        async def is_denied() -> bool:
            return isinstance(await outcome(As(channel, "one").call("ListPipelines")), Refused)

        await eventually(is_denied)


async def test_an_anonymous_caller_lifts_no_lock_of_somebody_who_is_known(
    settings: Settings, files: Files, new_name: Callable[[], str]
) -> None:
    async with secured(settings, files, anonymous="operator") as channel:
        one, nobody, name = As(channel, "one"), TypedClient(channel), new_name()
        await one.call("CreatePipeline", name=name, stages=["a"])
        await one.call("LockPipeline", name=name, reason="r", owner="ops")
        assert (
            await refusal(nobody.call("UnlockPipeline", name=name, owner="ops"))
        ).reason == "LOCK_MISMATCH"
        await one.call("UnlockPipeline", name=name)
        await nobody.call("LockPipeline", name=name, reason="r", owner="ops")
        assert (await refusal(one.call("UnlockPipeline", name=name, owner="ops"))).reason == "LOCK_MISMATCH"
        await nobody.call("UnlockPipeline", name=name, owner="ops")


@pytest.mark.parametrize("authenticates", [True, False])
@pytest.mark.parametrize("anonymous", ["viewer", "none"])
def test_the_start_says_at_every_level_what_the_anonymous_may(
    stores: Stores, files: Files, authenticates: bool, anonymous: str
) -> None:
    environment = {"DP_ANONYMOUS": anonymous, "DP_LOG_LEVEL": "error"}
    if authenticates:
        environment |= {"DP_TOKENS_FILE": str(files.tokens), "DP_GRANTS_FILE": str(files.grants)}
    with (files.folder / "log").open("a+") as log:
        with server(stores, environment, log) as running:
            running.stop()
        log.seek(0)
        warnings = [line for line in map(json.loads, log) if line["level"] == "warning"]
    said = [line.get("they_are") if authenticates else line.get("everybody_is") for line in warnings]
    assert said == ([] if authenticates and anonymous == "none" else [anonymous])


async def test_health_and_reflection_need_no_identity(settings: Settings, files: Files) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415

    from support.clients import ReflectionClient  # noqa: PLC0415

    async with secured(settings, files) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        client = await ReflectionClient.connect(channel)
        assert (await refusal(client.call("ListPipelines"))).reason == "UNAUTHENTICATED"
