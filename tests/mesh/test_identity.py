"""A real Envoy, with mutual TLS on both sides, says who calls; who says it himself is not believed."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta

import pytest
from cryptography import x509
from grpc import StatusCode

from deployment_pipeline.edge.identity.forwarded import HEADER
from deployment_pipeline.run.settings import Settings
from support.certificates import Authority
from support.certified import ADMIN, CI, GATEWAY, OPS, Service, bearer, certified, who
from support.clients import Answer, Refused, TypedClient
from support.mesh.certifying import APPEND_FORWARD, SANITIZE_SET, certifying
from support.secured import Files, grant
from support.steps import advance, outcome, refusal, trigger

pytestmark = pytest.mark.mesh

EDGE = "spiffe://corp/edge"
FORGED = (HEADER, f"URI={ADMIN}")
ON_BEHALF_OF = "x-dp-on-behalf-of"
SUBJECTS = [
    "ci",
    f",URI={ADMIN}",
    f'",URI={ADMIN},x="',
    f'";URI={ADMIN};x="',
    f'\\";URI={ADMIN};x="y\\',
    "ci\\",
    '\\"',
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = Files(tmp_path_factory.mktemp("secured"))
    made.write_tokens({"one": []})
    made.write_grants(
        grant('id = "*"', "viewer")
        + grant(f'id = "{CI}"', "deployer")
        + grant(f'id = "{ADMIN}"', "admin")
        + grant(f'id = "{EDGE}"', "deployer", more="impersonate = true")
    )
    return made


@pytest.fixture(scope="module")
async def service(settings: Settings, authority: Authority, files: Files) -> AsyncIterator[Service]:
    """It believes the gateway. Callers without a credential may look: whoever proves nothing must not be one
    of them."""
    async with certified(settings, authority, files, anonymous="viewer", xfcc_from=GATEWAY) as started:
        yield started


@pytest.fixture(scope="module", params=[SANITIZE_SET, APPEND_FORWARD])
def forward(request: pytest.FixtureRequest) -> str:
    """What the gateway does with the header that callers send."""
    return str(request.param)


@pytest.fixture(scope="module")
def gateway(service: Service, forward: str) -> Iterator[str]:
    """Its address."""
    with certifying(service.mtls, service.authority, GATEWAY, forward) as address:
        yield address


@pytest.fixture
async def ci(service: Service, gateway: str) -> AsyncIterator[TypedClient]:
    async with service.caller(CI, at=gateway) as client:
        yield client


@pytest.fixture
async def shop(service: Service, new_name: Callable[[], str]) -> str:
    name = new_name()
    async with service.caller(ADMIN) as admin:
        await admin.call("CreatePipeline", name=name, stages=["a", "b"])
    return name


async def events(client: TypedClient, pipeline: str) -> list[tuple[str, str, str]]:
    """The type of each, its actor, and on whose word."""
    found = (await client.call("ListEvents", pipeline_name=pipeline)).events
    return [(type(event).Type.Name(event.type), event.actor, event.via) for event in found]


async def test_r2_callers_of_a_proxy_are_who_their_certificates_say(
    service: Service, gateway: str, ci: TypedClient, shop: str
) -> None:
    async with service.caller(ADMIN, at=gateway) as admin, service.caller(OPS, at=gateway) as ops:
        assert [await who(client) for client in (ci, admin, ops)] == [CI, ADMIN, OPS]
        made = await trigger(ci, shop)
        assert (made.triggered_by, made.via) == (CI, "")
        refused = await refusal(advance(ops, made.id))
        assert (refused.code, refused.facts["principal"]) == (StatusCode.PERMISSION_DENIED, OPS)
        await advance(admin, made.id)
        assert await events(ops, shop) == [
            ("CREATE", ADMIN, ""),
            ("TRIGGER", CI, ""),
            ("ADVANCE", ADMIN, ""),
        ]


async def test_r1_forged_words_are_not_believed_through_the_proxy_nor_past_it(
    service: Service, ci: TypedClient, shop: str
) -> None:
    async with service.caller(CI) as direct, service.anonymous(service.plain) as nobody:
        for forged in (
            [FORGED],
            [FORGED, FORGED],
            [(HEADER, f'By=x;Hash=00;URI="{ADMIN}"')],
            [(HEADER, f"URI={GATEWAY},URI={ADMIN}")],
        ):
            for client, name in ((ci, CI), (direct, CI), (nobody, "")):
                assert await who(client, *forged) == name
                lock = client.call("LockPipeline", name=shop, reason="r", metadata=forged)
                assert (await refusal(lock)).reason == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    "malformed", [f'Subject="CN=x;URI={ADMIN}', f"URI={ADMIN}\\", f"=,URI={ADMIN};", ","]
)
async def test_r1_a_malformed_word_never_makes_somebody_else(
    ci: TypedClient, forward: str, malformed: str
) -> None:
    result = await outcome(ci.call("GetServerInfo", metadata=[(HEADER, malformed)]))
    if forward == SANITIZE_SET:
        assert isinstance(result, Answer)
        assert result.principal == CI
    else:  # what the proxy appends to it cannot be told from it
        assert isinstance(result, Refused)
        assert result.reason == "UNAUTHENTICATED"


@pytest.mark.parametrize("subject", SUBJECTS)
async def test_r1_what_stands_in_a_certificate_is_not_taken_for_the_proxys_word(
    service: Service, gateway: str, subject: str
) -> None:
    names = [x509.DNSName("ci.corp")]
    async with service.caller(CI, at=gateway, subject=subject, names=names) as client:
        assert await who(client) == CI
        assert await who(client, FORGED) == CI


@pytest.mark.parametrize("uris", [[CI, ADMIN], [], ["https://corp/ci"], ["spiffe://other/ci"]])
async def test_r1_a_certificate_with_two_ids_or_none_of_ours_proves_nothing(
    service: Service, gateway: str, uris: list[str]
) -> None:
    async with service.caller(*uris, at=gateway) as client:
        for metadata in ([], [FORGED]):
            refused = await refusal(client.call("ListPipelines", metadata=metadata))
            assert (refused.code, refused.reason) == (StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


async def test_a_uri_with_a_comma_speaks_as_the_proxy_so_a_ca_must_sign_none(
    service: Service, gateway: str
) -> None:
    """Envoy does not quote it. Shown to the service itself, it proves nothing."""
    uri = f"{CI},URI={ADMIN}"
    async with service.caller(uri, at=gateway) as client, service.caller(uri) as direct:
        assert await who(client) == ADMIN
        assert (await refusal(direct.call("ListPipelines"))).reason == "UNAUTHENTICATED"


async def test_r1_a_token_decides_alone_behind_a_proxy_too(service: Service, gateway: str, shop: str) -> None:
    async with service.caller(ADMIN, at=gateway) as admin:
        assert await who(admin, bearer("one")) == "token:one"
        refused = await refusal(trigger(admin, shop, metadata=[bearer("one")]))
        assert (refused.reason, refused.facts["principal"]) == ("PERMISSION_DENIED", "token:one")
        refused = await refusal(trigger(admin, shop, metadata=[bearer("guess")]))
        assert (refused.code, refused.reason) == (StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert await who(admin) == ADMIN


async def test_a_proxy_that_nobody_believes_speaks_for_itself(service: Service) -> None:
    with certifying(service.mtls, service.authority, EDGE) as address:
        async with service.caller(ADMIN, at=address) as admin:
            assert await who(admin) == EDGE
            assert await who(admin, FORGED) == EDGE


async def test_r1_behind_two_proxies_the_caller_is_the_outer_one(service: Service, shop: str) -> None:
    """The inner one appends, and what counts is the certificate that it has seen itself."""
    with (
        certifying(service.mtls, service.authority, GATEWAY, APPEND_FORWARD) as inner,
        certifying(inner, service.authority, EDGE, APPEND_FORWARD) as outer,
    ):
        async with service.caller(ADMIN, at=outer) as admin:
            assert await who(admin) == EDGE
            assert await who(admin, FORGED) == EDGE
            assert (await trigger(admin, shop)).triggered_by == EDGE
            locked = admin.call("LockPipeline", name=shop, reason="r")
            assert (await refusal(locked)).facts["principal"] == EDGE


async def test_r2_a_proxy_that_may_names_its_callers_and_these_cannot_name_others(
    service: Service, shop: str
) -> None:
    named = {"key": ON_BEHALF_OF, "value": "%DOWNSTREAM_PEER_URI_SAN%"}
    overwrites = {"header": named, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    host = {"request_headers_to_add": [overwrites]}
    with certifying(service.mtls, service.authority, EDGE, virtual_host=host) as address:
        async with service.caller(OPS, at=address) as ops:
            made = await trigger(ops, shop, metadata=[(ON_BEHALF_OF, ADMIN)])
            assert (made.triggered_by, made.via) == (OPS, EDGE)
            assert (await events(ops, shop))[-1] == ("TRIGGER", OPS, EDGE)


async def test_r1_a_sidecar_is_believed_on_the_plain_listener_of_its_pod(
    settings: Settings, authority: Authority, files: Files, shop: str
) -> None:
    async with certified(settings, authority, files, xfcc_from="127.0.0.0/8") as service:
        with certifying(service.plain, authority, "spiffe://corp/sidecar", encrypts=False) as address:
            async with service.caller(CI, at=address) as ci, service.caller(CI) as direct:
                assert await who(ci) == CI
                assert await who(ci, FORGED) == CI
                assert (await trigger(ci, shop)).triggered_by == CI
                assert await who(direct, FORGED) == CI, "it shows a certificate of its own"
            async with service.anonymous(service.plain) as nobody:
                assert (await refusal(nobody.call("GetServerInfo"))).reason == "UNAUTHENTICATED"


async def test_a_proxy_vouches_for_a_certificate_that_has_expired_since(
    service: Service, gateway: str
) -> None:
    """It looks at the handshake only. What bounds that is its max_connection_duration."""
    pair = service.authority.client(CI, lasts=timedelta(seconds=5))
    ends_at = x509.load_pem_x509_certificate(pair.chain).not_valid_after_utc.timestamp()
    async with service.with_pair(pair, gateway) as brief:
        assert await who(brief) == CI
        await asyncio.sleep(ends_at - time.time() + 0.05)
        assert await who(brief) == CI
        async with service.with_pair(pair, gateway) as again:
            assert (await refusal(again.call("GetServerInfo"))).code == StatusCode.UNAVAILABLE
