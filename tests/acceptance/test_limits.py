"""How much one caller may send: calls, and credentials that prove nothing."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from deployment_pipeline.edge.identity import identity
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import Answer, Refused, TypedClient
from support.issuer import FakeIssuer
from support.secured import As, Files, grant, secured
from support.steps import outcome, refusal


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.write_tokens({"one": [], "other": []})
    made.write_grants(grant('id = "*"', "admin"))
    return made


async def refused_of(calls: list[Any]) -> list[Refused]:
    results = await asyncio.gather(*(outcome(call) for call in calls))
    return [result for result in results if isinstance(result, Refused)]


async def test_a_caller_who_sends_too_many_calls_is_told_when_to_come_back(
    settings: Settings, files: Files
) -> None:
    async with secured(settings, files, rate_per_principal=0.5) as channel:
        one, other = As(channel, "one"), As(channel, "other")
        await one.call("GetServerInfo")
        refused = await refusal(one.call("ListPipelines"))
        assert (refused.code, refused.reason) == (StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        told_ms = int(refused.facts["retry_ms"])
        assert 0 < told_ms <= 2000
        assert refused.details["RetryInfo"].retry_delay.ToMilliseconds() == told_ms
        assert refused.trailing["grpc-retry-pushback-ms"] == str(told_ms)
        assert f"{told_ms} ms" in refused.message
        # Nobody else pays for it, and whoever waits is served.
        await other.call("GetServerInfo")
        await asyncio.sleep(told_ms / 1000)
        await one.call("GetServerInfo")


async def test_the_rate_is_judged_before_the_rights(settings: Settings, files: Files) -> None:
    files.write_grants("")
    async with secured(settings, files, rate_per_principal=0.01) as channel:
        one = As(channel, "one")
        assert (await refusal(one.call("ListPipelines"))).reason == "PERMISSION_DENIED"
        assert (await refusal(one.call("ListPipelines"))).reason == "RATE_LIMITED"


async def test_on_behalf_of_many_it_is_the_services_rate(settings: Settings, files: Files) -> None:
    files.write_grants(grant('id = "*"', "viewer", more="impersonate = true"))
    async with secured(settings, files, rate_per_principal=2) as channel:
        calls = [
            As(channel, "one", ("x-dp-on-behalf-of", f"corp#{n}")).call("GetServerInfo") for n in range(10)
        ]
        assert len(await refused_of(calls)) >= 7


async def test_anonymous_callers_of_one_address_share_a_rate(settings: Settings) -> None:
    async with (
        running(settings.model_copy(update={"rate_per_principal": 2.0})) as [listener],
        grpc.aio.insecure_channel(listener.address) as channel,
    ):
        client = TypedClient(channel)
        refused = await refused_of([client.call("GetServerInfo") for _ in range(10)])
        assert {one.reason for one in refused} == {"RATE_LIMITED"}
        assert len(refused) >= 7


async def test_by_default_there_is_no_rate(settings: Settings, files: Files) -> None:
    async with secured(settings, files) as channel:
        one = As(channel, "one")
        assert await refused_of([one.call("GetServerInfo") for _ in range(90)]) == []


async def test_guesses_are_told_to_come_back_later_and_good_tokens_of_the_same_address_go_on(
    settings: Settings, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a sidecar or a balancer everybody has one address, and each CI job has a token of its own."""
    monkeypatch.setattr(identity, "FAILURES_PER_SECOND", 0.01)
    monkeypatch.setattr(identity, "FAILURES_AT_ONCE", 5)
    corp = FakeIssuer()
    corp.in_file(files.folder / "keys.json")
    issuer = {
        "name": "corp",
        "issuer": corp.issuer,
        "audience": corp.audience,
        "jwks_file": str(files.folder / "keys.json"),
    }
    async with secured(settings, files, jwt_issuers=json.dumps([issuer])) as channel:
        guesses = [As(channel, f"guess-{n}").call("GetServerInfo") for n in range(20)]
        reasons = [one.reason for one in await refused_of(guesses)]
        assert len(reasons) == 20
        assert reasons.count("RATE_LIMITED") >= 10
        assert reasons.count("UNAUTHENTICATED") >= 5
        assert isinstance(await As(channel, "one").call("GetServerInfo"), Answer)
        job = (("authorization", f"Bearer {corp.token()}"),)
        assert isinstance(await TypedClient(channel).call("GetServerInfo", metadata=job), Answer)
