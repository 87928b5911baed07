"""x-forwarded-client-cert: whose is believed, and what can be read in it."""

import tracemalloc

import pytest

from deployment_pipeline.edge.identity.forwarded import HEADER, MAX_PAIRS, Forwarded
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.principal import Principal

CI = "spiffe://corp/ci"
ADMIN = "spiffe://corp/admin"
GATEWAY = Principal("spiffe://corp/gateway")
NEAR = "ipv4:127.0.0.1:1234"
# As Envoy writes it.
HASH = "Hash=468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688"
SUBJECT = 'Subject="CN=ci,O=\\"Corp; Inc.\\",L=a\\\\b"'

forwarded = Forwarded("spiffe://corp/gateway,127.0.0.0/8,::1/128,10.1.0.0/16", "corp")


def read(*values: str | bytes) -> str:
    """The id of who is believed to have called."""
    metadata = [("user-agent", "test"), *((HEADER, value) for value in values)]
    principal = forwarded.principal(metadata, NEAR, None)
    assert principal
    return principal.id


@pytest.mark.parametrize(
    "values",
    [
        (f"URI={CI}",),
        (f"By=spiffe://corp/dp;{HASH};{SUBJECT};URI={CI};DNS=ci.corp;DNS=ci",),
        (f"uRi={CI}",),
        (f'URI="{CI}"',),
        (f'By=spiffe://corp/dp;Cert="-----BEGIN%20CERTIFICATE-----%0A,;=";URI={CI}',),
        # The nearest proxy's element is the last one, whatever callers sent before.
        (f"URI={ADMIN},By=spiffe://corp/dp;{HASH};URI={CI}",),
        (f"URI={ADMIN}, URI={CI}",),
        (f"URI={ADMIN}", f"URI={CI}"),
        (f"URI={ADMIN},URI={ADMIN}", f"{HASH};URI={ADMIN}", f"URI={CI}"),
        # A subject of the caller's choice, as it is written into a certificate and quoted.
        (f'{HASH};Subject="CN=\\",URI={ADMIN}";URI={CI}',),
        (f'{HASH};Subject="CN=x;URI={ADMIN}";URI={CI}',),
        (f'{HASH};Subject="CN=x\\\\";URI={CI}',),
        (f'{HASH};Subject="CN=x,URI={ADMIN},CN=y";URI={CI}',),
    ],
)
def test_the_last_elements_uri_is_the_caller(values: tuple[str, ...]) -> None:
    assert read(*values) == CI


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((f"{HASH};{SUBJECT}",), "has 0 URIs"),
        ((f'{HASH};Subject="CN=x;URI={CI}"',), "has 0 URIs"),
        ((f'{HASH};Subject="URI={CI}"',), "has 0 URIs"),
        ((f"By={CI}",), "has 0 URIs"),
        ((f"URI={CI},{HASH}",), "has 0 URIs"),
        ((f"URI={CI}", HASH), "has 0 URIs"),
        ((f"URI={CI};URI={ADMIN}",), "has 2 URIs"),
        ((f"URI={CI};uri={CI}",), "has 2 URIs"),
        (("URI=",), "is no SPIFFE id"),
        (('URI=""',), "is no SPIFFE id"),
        (("URI=https://corp/ci",), "is no SPIFFE id"),
        ((f"URI={CI} ",), "is no SPIFFE id"),
        (("URI=spiffe://corp.evil/ci",), "of another trust domain"),
        (("",), "malformed at its character 1"),
        ((CI,), "malformed"),
        (("URI",), "malformed"),
        ((f"={CI}",), "malformed"),
        ((f"URI={CI},",), "malformed"),
        ((f"URI={CI};",), "malformed"),
        ((f",URI={CI}",), "malformed"),
        ((f"URI={ADMIN},,URI={CI}",), "malformed"),
        ((f"URI={CI}?a=b",), "malformed"),
        ((f"URI ={CI}",), "malformed"),
        ((f'URI="{CI}',), "malformed"),
        ((f'Subject="CN=x;URI={CI}',), "malformed"),
        ((f'Subject="CN=x\\";URI={CI}',), "malformed"),
        # A quote that is left open in one header does not reach into the next.
        (('Subject="CN=x', f'";URI={CI}'), "malformed"),
        ((f'URI="{CI}"x',), "malformed"),
        ((f'URI=x"{CI}"',), "malformed"),
        ((f"URI={CI}\\",), "malformed"),
        # An earlier element counts, too: nobody knows where it was meant to end.
        ((f'Subject="CN=x"y",URI={CI}',), "malformed"),
        ((b"URI=\xff",), "is not UTF-8"),
        # What takes long to read.
        (("a=," * MAX_PAIRS + f"URI={CI}",), "has more than 500 pairs"),
        (("a=",) * MAX_PAIRS + (f"URI={CI}",), "has more than 500 pairs"),
    ],
)
def test_what_cannot_be_read_proves_nothing(values: tuple[str | bytes, ...], problem: str) -> None:
    with pytest.raises(NotProven, match=problem):
        read(*values)


@pytest.mark.parametrize(
    ("peer", "certified"),
    [
        (NEAR, None),
        ("ipv4:127.255.0.9:1", None),
        ("ipv6:%5B::1%5D:1234", None),
        ("ipv6:%5B::ffff:10.1.2.3%5D:1234", None),
        ("ipv4:192.0.2.1:1234", GATEWAY),
        ("unix:/tmp/socket", GATEWAY),
    ],
)
def test_it_is_believed_from_a_proxy(peer: str, certified: Principal | None) -> None:
    principal = forwarded.principal([(HEADER, f"URI={CI}")], peer, certified)
    assert principal
    assert principal.id == CI


@pytest.mark.parametrize(
    ("peer", "certified"),
    [
        ("ipv4:192.0.2.1:1234", None),
        (NEAR, Principal("spiffe://corp/other")),
        ("ipv4:10.2.0.1:1234", Principal("spiffe://corp/gateway2")),
        ("ipv4:10.2.0.1:1234", Principal("corp#spiffe://corp/gateway", issuer="corp")),
        ("ipv6:%5Bfe80::1%25eth0%5D:1234", None),
        ("ipv6:%5B::2%5D:1234", None),
        ("unix:127.0.0.1:1234", None),
        ("unix:", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("value", [f"URI={CI}", "malformed"])
def test_it_is_ignored_from_everybody_else(peer: str, certified: Principal | None, value: str) -> None:
    assert forwarded.principal([(HEADER, value)], peer, certified) is None


def test_without_the_header_there_is_nothing_to_believe() -> None:
    assert forwarded.principal([("user-agent", "test")], NEAR, GATEWAY) is None


def test_nobody_is_believed_unless_it_is_said() -> None:
    assert Forwarded("", "").principal([(HEADER, f"URI={CI}")], NEAR, GATEWAY) is None


def test_without_a_trust_domain_any_is_accepted() -> None:
    principal = Forwarded("127.0.0.1", "").principal([(HEADER, "URI=spiffe://other/ci")], NEAR, None)
    assert principal
    assert principal.id == "spiffe://other/ci"


def test_headers_that_callers_made_long_do_not_fill_the_memory() -> None:
    tracemalloc.start()
    try:
        for n in range(1000):
            assert read(f'Subject="{n:0>10000}",URI={CI}') == CI
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000
