"""Callers with certificates: who they are, what they may do, and until when."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from grpc import StatusCode

from deployment_pipeline.edge import reloading
from deployment_pipeline.edge.identity import identity
from deployment_pipeline.run.settings import Settings
from support.certificates import Authority, caller
from support.certified import ADMIN, CI, OPS, Service, bearer, certified, who
from support.clients import Answer, Refused, TypedClient
from support.handshakes import connection
from support.issuer import FakeIssuer, settings_of
from support.secured import Files, grant
from support.steps import advance, outcome, refusal, trigger

OWN = "own-"
ROLES = ("viewer", "deployer", "operator", "admin")
# One that needs each role, and what it needs beside the pipeline's name.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "viewer": ("GetPipelineState", {}),
    "deployer": ("TriggerDeployment", {"version": "1"}),
    "operator": ("LockPipeline", {"reason": "r"}),
    "admin": ("UpdatePipeline", {"description": "d"}),
}
GRANTS = (
    grant('id = "spiffe://corp/*"', "viewer", f"{OWN}*")
    + grant('id = "spiffe://corp/ci/*"', "deployer", f"{OWN}*")
    + grant(f'id = "{OPS}"', "operator", f"{OWN}*")
    + grant(f'id = "{ADMIN}"', "admin")
    + grant('id = "token:one"', "viewer")
)
# Long enough to connect on a slow machine.
LASTS = timedelta(seconds=5)
# What a clock may be off.
MOMENT_SECONDS = 0.05


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = Files(tmp_path_factory.mktemp("secured"))
    made.write_tokens({"one": []})
    made.write_grants(GRANTS)
    return made


@pytest.fixture(scope="module")
async def service(settings: Settings, authority: Authority, files: Files) -> AsyncIterator[Service]:
    """Where callers without a credential may look: whoever proves nothing must not be taken for one."""
    async with certified(settings, authority, files, anonymous="viewer") as started:
        yield started


@pytest.fixture
async def admin(service: Service) -> AsyncIterator[TypedClient]:
    async with service.caller(ADMIN) as client:
        yield client


@pytest.fixture
async def shop(admin: TypedClient, new_name: Callable[[], str]) -> str:
    return await created(admin, f"{OWN}{new_name()}")


async def created(admin: TypedClient, name: str) -> str:
    await admin.call("CreatePipeline", name=name, stages=["a", "b"])
    return name


async def events(client: TypedClient, pipeline: str) -> list[tuple[str, str]]:
    """The type of each, and its actor."""
    found = (await client.call("ListEvents", pipeline_name=pipeline)).events
    return [(type(event).Type.Name(event.type), event.actor) for event in found]


@pytest.mark.parametrize(
    ("id", "role"),
    [
        ("spiffe://corp/ci/build", "deployer"),
        ("spiffe://corp/ci/team/one", "deployer"),
        # What only looks like it.
        (CI, "viewer"),
        ("spiffe://corp/ci-tool", "viewer"),
        ("spiffe://corp/CI/build", "viewer"),
        (OPS, "operator"),
        ("spiffe://corp/ops/agent", "viewer"),
        (ADMIN, "admin"),
    ],
)
async def test_r1_a_certificates_id_has_the_roles_of_the_patterns_that_it_fits(
    service: Service, admin: TypedClient, shop: str, new_name: Callable[[], str], id: str, role: str
) -> None:
    foreign = await created(admin, new_name())
    async with service.caller(id) as client:
        for needed, (method, more) in METHODS.items():
            field = "pipeline_name" if method == "TriggerDeployment" else "name"
            for pipeline in (shop, foreign):
                fields: dict[str, Any] = {field: pipeline, **more}
                result = await outcome(client.call(method, **fields))
                if ROLES.index(role) >= ROLES.index(needed) and (pipeline == shop or id == ADMIN):
                    assert isinstance(result, Answer), result
                else:
                    assert isinstance(result, Refused)
                    assert (result.code, result.reason) == (StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
                    assert (result.facts["principal"], result.facts["role"]) == (id, needed)
    if id != ADMIN:
        assert await events(admin, foreign) == [("CREATE", ADMIN)]


async def test_r2_deployments_and_events_name_the_certificate(
    service: Service, admin: TypedClient, shop: str
) -> None:
    async with service.caller("spiffe://corp/ci/1") as one, service.caller("spiffe://corp/ci/2") as two:
        made = await trigger(one, shop)
        assert (made.triggered_by, made.via) == ("spiffe://corp/ci/1", "")
        await advance(two, made.id)
    assert await events(admin, shop) == [
        ("CREATE", ADMIN),
        ("TRIGGER", "spiffe://corp/ci/1"),
        ("ADVANCE", "spiffe://corp/ci/2"),
    ]


@pytest.mark.parametrize(
    ("uris", "others"),
    [
        (["spiffe://other/ci"], {}),
        (["spiffe://corp.example/ci"], {}),
        ([CI, ADMIN], {}),
        ([ADMIN, ADMIN], {}),
        ([CI, "https://corp/ci"], {}),
        (["https://corp/ci"], {}),
        ([], {"names": [x509.DNSName("ci.corp")]}),
        ([], {"subject": ADMIN}),
        ([], {}),
        ([ADMIN], {"extensions": [x509.BasicConstraints(ca=True, path_length=None)]}),
    ],
)
async def test_r1_a_certificate_that_proves_nothing_is_less_than_none(
    service: Service, uris: list[str], others: dict[str, Any]
) -> None:
    async with service.caller(*uris, **others) as client:
        for method in ("GetServerInfo", "ListPipelines"):
            refused = await refusal(client.call(method))
            assert (refused.code, refused.reason) == (StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
            assert "spiffe://" not in refused.message
        assert await who(client, bearer("one")) == "token:one"


async def test_whoever_the_handshake_does_not_prove_is_not_served(
    service: Service, authority: Authority
) -> None:
    expired = authority.client(ADMIN, lasts=timedelta(seconds=-1))
    of_another = Authority().client(ADMIN)
    ways = [(service.mtls, caller(authority, pair)) for pair in (None, of_another, expired)]
    # And what is sent in the clear to a port that speaks TLS, or the other way round.
    for address, credentials in (
        *ways,
        (service.mtls, None),
        (service.tls, None),
        (service.plain, caller(authority)),
    ):
        async with connection(address, credentials) as channel:
            refused = await refusal(TypedClient(channel).call("ListPipelines"))
            assert refused.code == StatusCode.UNAVAILABLE
            assert not refused.details, "this is not the service's word"


async def test_a_certificate_that_expires_while_connected_is_refused_from_then_on(
    service: Service, authority: Authority, admin: TypedClient, shop: str
) -> None:
    pair = authority.client("spiffe://corp/ci/brief", lasts=LASTS)
    ends_at = x509.load_pem_x509_certificate(pair.chain).not_valid_after_utc.timestamp()
    async with service.with_pair(pair) as brief:
        made = await trigger(brief, shop)
        await asyncio.sleep(ends_at - time.time() + MOMENT_SECONDS)
        for _ in range(2):
            # Over the connection that there is: with a new one, it would be UNAVAILABLE.
            refused = await refusal(advance(brief, made.id))
            assert (refused.code, refused.reason) == (StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert await who(brief, bearer("one")) == "token:one"
        async with service.with_pair(pair) as again:
            assert (await refusal(again.call("GetServerInfo"))).code == StatusCode.UNAVAILABLE
    assert await events(admin, shop) == [("CREATE", ADMIN), ("TRIGGER", "spiffe://corp/ci/brief")]


async def test_r1_a_token_decides_alone_whatever_certificate_is_beside_it(
    service: Service, admin: TypedClient, shop: str
) -> None:
    assert await who(admin) == ADMIN
    assert await who(admin, bearer("one")) == "token:one"
    refused = await refusal(trigger(admin, shop, metadata=[bearer("one")]))
    assert (refused.reason, refused.facts["principal"]) == ("PERMISSION_DENIED", "token:one")
    for sent in (
        [bearer("guess")],
        [("authorization", "")],
        [("authorization", "Basic YTpi")],
        [bearer("one"), bearer("one")],
    ):
        refused = await refusal(trigger(admin, shop, metadata=sent))
        assert (refused.code, refused.reason) == (StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert await events(admin, shop) == [("CREATE", ADMIN)]


async def test_r1_nobody_without_a_certificate_is_more_than_anonymous(service: Service, shop: str) -> None:
    for address in (service.tls, service.plain):
        async with service.anonymous(address) as nobody:
            assert await who(nobody) == ""
            assert (await nobody.call("GetPipeline", name=shop)).name == shop
            refused = await refusal(trigger(nobody, shop))
            assert (refused.reason, refused.facts["role"]) == ("PERMISSION_DENIED", "deployer")
            assert await who(nobody, bearer("one")) == "token:one"
    # A certificate that nobody asked for is not shown.
    pair = service.authority.client(ADMIN)
    async with connection(service.tls, caller(service.authority, pair)) as channel:
        assert await who(TypedClient(channel)) == ""


async def test_r1_an_id_that_is_denied_while_it_is_connected_may_nothing_more(
    settings: Settings, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 0.02)
    files = Files(tmp_path)
    files.write_tokens({"one": []})
    files.write_grants(GRANTS)
    async with (
        certified(settings, authority, files) as service,
        service.caller("spiffe://corp/ci/old") as old,
        service.caller("spiffe://corp/ci/new") as new,
    ):
        await old.call("ListPipelines")
        files.write_grants(f'{GRANTS}[[deny]]\nmatch = {{ id = "spiffe://corp/ci/old" }}\n')
        async with asyncio.timeout(20):
            while isinstance(denied := await outcome(old.call("GetServerInfo")), Answer):
                pass
        assert (denied.code, denied.reason) == (StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
        assert (await refusal(old.call("ListPipelines"))).facts["principal"] == "spiffe://corp/ci/old"
        await new.call("ListPipelines")


async def test_one_callers_bad_tokens_are_not_held_against_others_of_the_same_address(
    settings: Settings, authority: Authority, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "FAILURES_PER_SECOND", 0.01)
    monkeypatch.setattr(identity, "FAILURES_AT_ONCE", 5)
    corp = FakeIssuer()
    issuers = settings_of(corp.in_file(files.folder / "keys.json"))
    good, bad = (("authorization", f"Bearer {corp.token(exp=exp)}") for exp in (int(time.time()) + 60, 1))
    async with (
        certified(settings, authority, files, jwt_issuers=issuers) as service,
        service.caller("spiffe://corp/ci/rude") as rude,
        service.caller(CI) as ci,
        service.anonymous(service.tls) as nobody,
    ):
        refused = [await refusal(rude.call("GetServerInfo", metadata=[bad])) for _ in range(10)]
        assert [one.reason for one in refused] == ["UNAUTHENTICATED"] * 5 + ["RATE_LIMITED"] * 5
        assert await who(ci, good) == "corp#alice"
        assert await who(nobody, good) == "corp#alice"
        assert await who(rude) == "spiffe://corp/ci/rude"
