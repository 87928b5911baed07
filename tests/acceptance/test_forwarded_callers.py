"""Callers whose certificate a proxy has seen, and those who only say so. (tests/mesh has a real proxy.)"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
from grpc import StatusCode

from deployment_pipeline.edge.identity.forwarded import HEADER, MAX_PAIRS
from deployment_pipeline.run.settings import Settings
from support.certificates import Authority
from support.certified import ADMIN, CI, GATEWAY, Service, bearer, certified, who
from support.clients import TypedClient
from support.secured import Files, grant
from support.steps import refusal

HASH = "Hash=468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688"
FORGERIES = [
    (f"URI={ADMIN}",),
    (f'URI="{ADMIN}"',),
    (f"By=spiffe://corp/dp;{HASH};URI={ADMIN}",),
    (f"URI={GATEWAY},URI={ADMIN}",),
    (f"URI={ADMIN}", f"URI={ADMIN}"),
    ("what is this",),
    ("",),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = Files(tmp_path_factory.mktemp("secured"))
    made.write_tokens({"one": []})
    made.write_grants(grant(f'id = "{ADMIN}"', "admin") + grant('id = "*"', "viewer"))
    return made


@pytest.fixture(scope="module")
async def service(settings: Settings, authority: Authority, files: Files) -> AsyncIterator[Service]:
    """It believes the gateway. Callers without a credential may look: a word that is not believed must not
    make somebody of them, nor one that proves nothing make them nobody."""
    async with certified(settings, authority, files, anonymous="viewer", xfcc_from=GATEWAY) as started:
        yield started


def sent(values: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(HEADER, value) for value in values]


@pytest.mark.parametrize("values", FORGERIES)
async def test_r1_what_callers_say_of_themselves_is_not_believed(
    service: Service, values: tuple[str, ...]
) -> None:
    ways: tuple[tuple[AbstractAsyncContextManager[TypedClient], str], ...] = (
        (service.caller(CI), CI),
        (service.caller(f"{GATEWAY}2"), f"{GATEWAY}2"),
        (service.anonymous(service.tls), ""),
        (service.anonymous(service.plain), ""),
    )
    for way, name in ways:
        async with way as client:
            assert await who(client, *sent(values)) == name
            create = client.call("CreatePipeline", name="p", stages=["a"], metadata=sent(values))
            assert (await refusal(create)).reason == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    "values",
    [
        (f"URI={CI}",),
        (f'By=spiffe://corp/dp;{HASH};Subject="CN=ci,O=\\"Corp; Inc.\\"";URI={CI};DNS=ci.corp',),
        # What others said before: the proxy's own element is the last one.
        (f"URI={ADMIN},{HASH};URI={CI}",),
        (f"URI={ADMIN}", f"URI={CI}"),
        # A certificate's subject is of its owner's choice.
        (f'{HASH};Subject="CN=\\",URI={ADMIN}";URI={CI}',),
        (f'{HASH};Subject="CN=x;URI={ADMIN}";URI={CI}',),
        (f'{HASH};Subject="CN=x,URI={ADMIN},CN=y";URI={CI}',),
    ],
)
async def test_the_gateway_says_whose_certificate_it_has_seen(
    service: Service, values: tuple[str, ...]
) -> None:
    async with service.caller(GATEWAY) as gateway:
        assert await who(gateway, *sent(values)) == CI
        assert await who(gateway) == GATEWAY, "it speaks for itself, too"


@pytest.mark.parametrize(
    "values",
    [
        ("",),
        ("what is this",),
        (HASH,),
        (f"URI={ADMIN};URI={CI}",),
        (f"URI={ADMIN},{HASH}",),
        (f"URI={ADMIN}", HASH),
        ("URI=spiffe://other/ci",),
        ("URI=https://corp/ci",),
        (f'Subject="CN=x";URI={CI}"',),
        (f'Subject="CN=x;URI={CI}',),
        (f"URI={ADMIN}," * MAX_PAIRS + f"URI={CI}",),
    ],
)
async def test_r1_what_the_gateway_says_must_name_one_caller(
    service: Service, values: tuple[str, ...]
) -> None:
    async with service.caller(GATEWAY) as gateway:
        refused = await refusal(gateway.call("ListPipelines", metadata=sent(values)))
        assert (refused.code, refused.reason) == (StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert "spiffe://" not in refused.message


async def test_r1_a_token_wins_over_what_the_gateway_says_and_a_bad_one_leaves_nobody(
    service: Service,
) -> None:
    forwarded = (HEADER, f"URI={ADMIN}")
    async with service.caller(GATEWAY) as gateway:
        assert await who(gateway, forwarded, bearer("one")) == "token:one"
        refused = await refusal(gateway.call("GetServerInfo", metadata=[forwarded, bearer("guess")]))
        assert refused.reason == "UNAUTHENTICATED"


async def test_r1_a_network_is_believed_where_nobody_shows_a_certificate(
    settings: Settings, authority: Authority, files: Files
) -> None:
    forwarded = (HEADER, f"URI={CI}")
    async with certified(settings, authority, files, xfcc_from="127.0.0.0/8") as service:
        async with service.anonymous(service.plain) as sidecar:
            assert await who(sidecar, forwarded) == CI
            assert (await refusal(sidecar.call("GetServerInfo"))).reason == "UNAUTHENTICATED"
        async with service.caller("spiffe://corp/ops") as ops:
            assert await who(ops, forwarded) == "spiffe://corp/ops"
    async with (
        certified(settings, authority, files, xfcc_from="10.0.0.0/8,::1/128") as service,
        service.anonymous(service.plain) as elsewhere,
    ):
        assert (await refusal(elsewhere.call("GetServerInfo", metadata=[forwarded]))).reason == (
            "UNAUTHENTICATED"
        )
