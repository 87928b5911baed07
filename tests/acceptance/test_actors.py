"""Every change names who made it: in deployments, in events, in locks, in log lines."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from deployment_pipeline.run.settings import Settings
from support.clients import Answer
from support.issuer import FakeIssuer
from support.secured import As, Files, grant, secured
from support.steps import advance, cancel, complete, queue, refusal, rollback, status, trigger

NAMES = ("alice", "bob", "carol", "portal", "rude")


@pytest.fixture(scope="module")
async def channel(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[grpc.aio.Channel]:
    files = Files(tmp_path_factory.mktemp("secured"))
    files.write_tokens(dict.fromkeys(NAMES, ()))
    files.write_grants(
        grant('id = "*"', "admin")
        + grant('id = "token:portal"', "viewer", more="impersonate = true")
        + '[[deny]]\nmatch = { id = "corp#mallory" }\n'
        + '[[deny]]\nmatch = { issuer = "old" }\n'
    )
    keys = files.folder / "keys.json"
    FakeIssuer("old").in_file(keys)
    issuer = {"name": "old", "issuer": "https://old.example", "audience": "a", "jwks_file": str(keys)}
    async with secured(settings, files, jwt_issuers=json.dumps([issuer])) as channel:
        yield channel


@pytest.fixture
def alice(channel: grpc.aio.Channel) -> As:
    return As(channel, "alice")


@pytest.fixture
def bob(channel: grpc.aio.Channel) -> As:
    return As(channel, "bob")


@pytest.fixture
def carol(channel: grpc.aio.Channel) -> As:
    return As(channel, "carol")


@pytest.fixture
async def shop(alice: As, new_name: Callable[[], str]) -> str:
    name = new_name()
    await alice.call("CreatePipeline", name=name, stages=["a", "b"])
    return name


async def log(client: As, pipeline: str) -> list[tuple[str, str, str]]:
    """Of each event: its type, its actor's name, and whose service called."""
    events = (await client.call("ListEvents", pipeline_name=pipeline)).events
    return [
        (type(event).Type.Name(event.type), event.actor.removeprefix("token:"), event.via) for event in events
    ]


async def test_r2_every_event_names_its_caller_across_promotion_and_supersession(
    alice: As, bob: As, carol: As, shop: str
) -> None:
    first = await trigger(alice, shop)
    second = await queue(bob, shop, "2")
    third = await trigger(carol, shop, "3", on_busy="SUPERSEDE")
    assert [one.triggered_by for one in (first, second, third)] == [alice.id, bob.id, carol.id]
    await advance(bob, first.id)
    await advance(carol, first.id)
    await cancel(alice, third.id)
    await alice.call("UpdatePipeline", name=shop, description="d")
    assert await log(alice, shop) == [
        ("CREATE", "alice", ""),
        ("TRIGGER", "alice", ""),
        ("QUEUE", "bob", ""),
        ("SUPERSEDE", "carol", ""),
        ("QUEUE", "carol", ""),
        ("ADVANCE", "bob", ""),
        ("COMPLETE", "carol", ""),
        ("PROMOTE", "carol", ""),
        ("CANCEL", "alice", ""),
        ("UPDATE", "alice", ""),
    ]
    assert [one.triggered_by for one in await _read(alice, first, second, third)] == [
        alice.id,
        bob.id,
        carol.id,
    ]


async def _read(client: As, *deployments: Answer) -> list[Answer]:
    return [await status(client, one.id) for one in deployments]


async def test_r2_a_redeployment_is_of_whoever_rolled_back(alice: As, bob: As, shop: str) -> None:
    await complete(alice, (await trigger(alice, shop)).id, stages=2)
    bad = await trigger(alice, shop, "2")
    await queue(alice, shop, "3")
    back = await rollback(bob, bad.id, redeploy_last_completed=True)
    again = await status(alice, back.redeployed_by)
    assert (back.triggered_by, again.triggered_by, again.version) == (alice.id, bob.id, "1")
    assert (await log(alice, shop))[-2:] == [("ROLLBACK", "bob", ""), ("TRIGGER", "bob", "")]
    await rollback(bob, again.id)
    assert (await log(alice, shop))[-2:] == [("ROLLBACK", "bob", ""), ("PROMOTE", "bob", "")]


async def test_r2_a_replay_by_somebody_else_is_answered_and_names_the_first(
    alice: As, bob: As, shop: str
) -> None:
    first = await trigger(alice, shop, request_id="release")
    again = await trigger(bob, shop, request_id="release")
    assert (again.replayed, again.id, again.triggered_by) == (True, first.id, alice.id)
    await advance(alice, first.id, request_id="built")
    assert (await advance(bob, first.id, request_id="built")).replayed
    assert await log(bob, shop) == [
        ("CREATE", "alice", ""),
        ("TRIGGER", "alice", ""),
        ("ADVANCE", "alice", ""),
    ]


async def test_a_meshs_identity_tells_repeats_of_the_same_caller_only(alice: As, bob: As, shop: str) -> None:
    mesh = (("x-request-id", "0123456789abcdef"),)
    first = await trigger(alice, shop, metadata=mesh)
    assert (await trigger(alice, shop, metadata=mesh)).id == first.id
    assert (await refusal(trigger(bob, shop, metadata=mesh))).reason == "PIPELINE_BUSY"


async def test_r2_a_lock_names_who_set_it_and_only_they_lift_it_without_its_number(
    alice: As, bob: As, shop: str
) -> None:
    locked = await alice.call("LockPipeline", name=shop, reason="r", owner="ops")
    assert (locked.lock.locked_by, locked.lock.owner) == (alice.id, "ops")
    refused = await refusal(trigger(bob, shop))
    assert (refused.reason, refused.facts["locked_by"]) == ("PIPELINE_LOCKED", alice.id)
    refused = await refusal(bob.call("UnlockPipeline", name=shop, owner="ops"))
    assert (refused.reason, refused.facts["locked_by"]) == ("LOCK_MISMATCH", alice.id)
    refused = await refusal(alice.call("UnlockPipeline", name=shop, owner="somebody else"))
    assert refused.reason == "LOCK_MISMATCH"
    unlocked = await alice.call("UnlockPipeline", name=shop)
    assert not unlocked.pipeline.HasField("lock")

    locked = await alice.call("LockPipeline", name=shop, reason="r")
    assert alice.id in (await refusal(trigger(bob, shop))).message
    changed = await bob.call("LockPipeline", name=shop, reason="mine now", lock_no=locked.lock.lock_no)
    assert changed.lock.locked_by == bob.id
    assert (await refusal(alice.call("UnlockPipeline", name=shop))).reason == "LOCK_MISMATCH"
    await bob.call("UnlockPipeline", name=shop, start_next=True)
    assert [(type, by) for type, by, _ in await log(alice, shop)][1:] == [
        ("LOCK", "alice"),
        ("UNLOCK", "alice"),
        ("LOCK", "alice"),
        ("LOCK", "bob"),
        ("UNLOCK", "bob"),
    ]


async def test_r2_the_same_lock_by_somebody_else_is_another_lock(alice: As, bob: As, shop: str) -> None:
    first = await alice.call("LockPipeline", name=shop, reason="freeze", owner="token:bob")
    assert (
        await alice.call("LockPipeline", name=shop, reason="freeze", owner="token:bob")
    ).lock == first.lock
    refused = await refusal(bob.call("LockPipeline", name=shop, reason="freeze", owner="token:bob"))
    assert refused.reason == "PIPELINE_LOCKED"
    assert 'locked by "token:bob" (token:alice) since' in refused.message
    await alice.call("UnlockPipeline", name=shop)


async def test_r2_a_service_that_may_calls_on_behalf_of_people(channel: grpc.aio.Channel, shop: str) -> None:
    anna = As(channel, "portal", ("x-dp-on-behalf-of", "corp#anna"))
    made = await trigger(anna, shop)
    assert (made.triggered_by, made.via) == ("corp#anna", "token:portal")
    await anna.call("LockPipeline", name=shop, reason="r")
    assert (await anna.call("GetPipeline", name=shop)).lock.locked_by == "corp#anna"
    ben = As(channel, "portal", ("x-dp-on-behalf-of", "corp#ben"))
    assert (await refusal(ben.call("UnlockPipeline", name=shop))).reason == "LOCK_MISMATCH"
    await anna.call("UnlockPipeline", name=shop)
    back = await rollback(ben, made.id, redeploy_version="0")
    assert (await status(ben, back.redeployed_by)).via == "token:portal"
    assert await log(anna, shop) == [
        ("CREATE", "alice", ""),
        ("TRIGGER", "corp#anna", "token:portal"),
        ("LOCK", "corp#anna", "token:portal"),
        ("UNLOCK", "corp#anna", "token:portal"),
        ("ROLLBACK", "corp#ben", "token:portal"),
        ("TRIGGER", "corp#ben", "token:portal"),
    ]
    info = await anna.call("GetServerInfo")
    assert (info.principal, info.via) == ("corp#anna", "token:portal")
    assert any(one.impersonate for one in info.grants)


async def test_r1_whoever_may_act_for_others_on_some_pipelines_may_not_on_all(
    settings: Settings, tmp_path: Path, new_name: Callable[[], str]
) -> None:
    own, other = new_name(), new_name()
    files = Files(tmp_path)
    files.write_tokens({"root": (), "portal": ()})
    files.write_grants(
        grant('id = "token:root"', "admin")
        + grant('id = "token:portal"', "deployer", f"{own}*", more="impersonate = true")
        + grant('id = "token:portal"', "deployer", other)
    )
    async with secured(settings, files) as channel:
        root, anna = As(channel, "root"), As(channel, "portal", ("x-dp-on-behalf-of", "corp#anna"))
        for name in (own, other):
            await root.call("CreatePipeline", name=name, stages=["a"])
        mine = await trigger(anna, own)
        assert (await cancel(anna, mine.id)).triggered_by == "corp#anna"
        assert (await anna.call("ListPipelines")).pipelines
        assert (await refusal(trigger(anna, other))).facts["role"] == "impersonate"
        foreign = await trigger(root, other)
        assert (await refusal(cancel(anna, foreign.id))).facts["role"] == "impersonate"


@pytest.mark.parametrize("person", ["corp#anna", "token:alice"])
async def test_r1_nobody_else_calls_on_behalf_of_people(
    channel: grpc.aio.Channel, shop: str, person: str
) -> None:
    client = As(channel, "rude", ("x-dp-on-behalf-of", person))
    refused = await refusal(trigger(client, shop))
    assert (refused.reason, refused.facts["role"]) == ("PERMISSION_DENIED", "impersonate")
    assert (await log(As(channel, "rude"), shop)) == [("CREATE", "alice", "")]


@pytest.mark.parametrize(
    "people", [[""], ["two words"], ["system:clock"], ["System:clock"], ["a" * 513], ["corp#a", "corp#b"]]
)
async def test_who_is_acted_for_must_be_one_id(
    channel: grpc.aio.Channel, shop: str, people: list[str]
) -> None:
    client = As(channel, "portal", *(("x-dp-on-behalf-of", person) for person in people))
    refused = await refusal(trigger(client, shop))
    assert (refused.reason, refused.facts["fields"]) == ("INVALID_FIELD", "x-dp-on-behalf-of")


@pytest.mark.parametrize("person", ["corp#mallory", "old#anna"])
async def test_r1_nobody_calls_on_behalf_of_whom_a_deny_names(
    channel: grpc.aio.Channel, shop: str, person: str
) -> None:
    client = As(channel, "portal", ("x-dp-on-behalf-of", person))
    refused = await refusal(trigger(client, shop))
    assert (refused.reason, refused.facts["principal"]) == ("PERMISSION_DENIED", person)


async def test_r2_without_authentication_nobody_is_named(client: Any, pipeline: str) -> None:
    made = await trigger(client, pipeline)
    assert (made.triggered_by, made.via) == ("", "")
    assert {event.actor for event in (await client.call("ListEvents", pipeline_name=pipeline)).events} == {""}
    assert (await client.call("GetServerInfo")).principal == ""
    refused = await refusal(trigger(client, pipeline, metadata=(("x-dp-on-behalf-of", "corp#anna"),)))
    assert refused.reason == "PERMISSION_DENIED"
