"""A real Envoy, with mutual TLS on both sides, says who calls; who says it himself is not believed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from deployment_pipeline.edge.identity.forwarded import HEADER
from deployment_pipeline.edge.listeners import Mode
from deployment_pipeline.edge.tls import Certificates
from support.certificates import LOOPBACK, Authority, Pair, Secret, caller
from support.handshakes import asked, connection, who
from support.mesh.envoy import Config, envoy, gateway
from support.mesh.programs import NotInstalled
from support.mesh.report import REPORT

pytestmark = pytest.mark.mesh

CI = "spiffe://corp/ci"
ADMIN = "spiffe://corp/admin"
GATEWAY = "spiffe://corp/gateway"
FORGED = (HEADER, f"URI={ADMIN}")
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
def authority() -> Authority:
    return Authority()


@pytest.fixture
def credentials(tmp_path: Path, authority: Authority) -> grpc.ServerCredentials:
    secret = Secret(tmp_path, authority.server(), authority)
    return Certificates(secret.cert, secret.key, secret.client_ca).credentials(Mode.MTLS)


def tls_socket(kind: str, pair: Pair, authority: Authority, **others: Any) -> Config:
    """Envoy's, towards its callers ("Downstream") or the service ("Upstream"). pair: what it shows them."""
    context = {
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": pair.chain.decode()},
                "private_key": {"inline_string": pair.key.decode()},
            }
        ],
        "validation_context": {"trusted_ca": {"inline_string": authority.pem.decode()}},
        "alpn_protocols": ["h2"],
    }
    type_url = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext"
    config = {"@type": type_url, "common_tls_context": context, **others}
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


@contextlib.contextmanager
def mesh(upstream: str, authority: Authority, forward: str, **details: bool) -> Iterator[str]:
    """Yields Envoy's address. It has GATEWAY's certificate on both sides. forward, details: what it does with
    the header, and what it writes into its own element."""
    own = authority.client(GATEWAY, names=[LOOPBACK])
    config = gateway(
        [upstream],
        filter_chain={
            "transport_socket": tls_socket("Downstream", own, authority, require_client_certificate=True)
        },
        connection_manager={
            "forward_client_cert_details": forward,
            "set_current_client_cert_details": details,
        },
        cluster={"transport_socket": tls_socket("Upstream", own, authority)},
    )
    try:
        with envoy(config) as started:
            yield started.address
    except NotInstalled as error:
        REPORT.not_run["Envoy, identity"] = str(error)
        pytest.fail(f"NOT RUN: {error}")


async def test_a_proxy_says_whose_certificate_it_has_seen_and_nobody_else_does(
    credentials: grpc.ServerCredentials, authority: Authority
) -> None:
    ci = caller(authority, authority.client(CI))
    async with asked(credentials, "corp", GATEWAY) as service:
        with mesh(service, authority, "SANITIZE_SET", uri=True) as address:
            async with connection(address, ci) as channel:
                assert await who(channel) == CI
                assert await who(channel, FORGED) == CI
                assert await who(channel, FORGED, FORGED) == CI
        async with connection(service, ci) as channel:
            assert await who(channel, FORGED) == CI


async def test_a_proxy_that_nobody_believes_speaks_for_itself(
    credentials: grpc.ServerCredentials, authority: Authority
) -> None:
    async with asked(credentials, "corp", "spiffe://corp/another") as service:
        with mesh(service, authority, "SANITIZE_SET", uri=True) as address:
            async with connection(address, caller(authority, authority.client(CI))) as channel:
                assert await who(channel) == GATEWAY


@pytest.mark.parametrize("forward", ["SANITIZE_SET", "APPEND_FORWARD"])
@pytest.mark.parametrize("subject", SUBJECTS)
async def test_what_callers_choose_is_not_taken_for_the_proxys_word(
    credentials: grpc.ServerCredentials, authority: Authority, forward: str, subject: str
) -> None:
    ci = authority.client(CI, subject=subject, names=[x509.DNSName("ci.corp")])
    details = {"subject": True, "cert": True, "chain": True, "uri": True, "dns": True}
    async with asked(credentials, "corp", GATEWAY) as service:
        with mesh(service, authority, forward, **details) as address:
            async with connection(address, caller(authority, ci)) as channel:
                assert await who(channel) == CI
                assert await who(channel, FORGED) == CI


async def test_a_caller_with_two_ids_or_none_is_nobody(
    credentials: grpc.ServerCredentials, authority: Authority
) -> None:
    async with asked(credentials, "corp", GATEWAY) as service:
        with mesh(service, authority, "APPEND_FORWARD", uri=True) as address:
            for uris in ([CI, ADMIN], [], ["https://corp/ci"]):
                async with connection(address, caller(authority, authority.client(*uris))) as channel:
                    assert (await who(channel, FORGED)).startswith("not proven: ")
