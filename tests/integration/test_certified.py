"""Callers as their certificates name them, over real handshakes."""

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509

from deployment_pipeline.edge.identity import certificates
from deployment_pipeline.edge.listeners import Mode
from deployment_pipeline.edge.tls import Certificates
from support.certificates import HOUR, Authority, Secret, caller
from support.handshakes import asked, connection, who, who_over

CI = "spiffe://corp/ci"
SIGNS = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


@pytest.fixture
def served(tmp_path: Path, authority: Authority) -> Certificates:
    secret = Secret(tmp_path, authority.server(), authority)
    return Certificates(secret.cert, secret.key, secret.client_ca)


async def test_a_caller_is_named_by_the_uri_of_his_certificate(
    served: Certificates, authority: Authority
) -> None:
    names = [x509.DNSName("ci.corp"), x509.RFC822Name("ci@corp.example")]
    pair = authority.client(CI, names=names, subject="spiffe://corp/admin")
    async with (
        asked(served.credentials(Mode.MTLS), "corp") as address,
        connection(address, caller(authority, pair)) as channel,
    ):
        assert [await who(channel) for _ in range(2)] == [CI, CI]


async def test_where_nobody_asks_for_a_certificate_nobody_is_named(
    served: Certificates, authority: Authority
) -> None:
    with_certificate = caller(authority, authority.client(CI))
    async with asked(served.credentials(Mode.TLS)) as address:
        assert await who_over(address, caller(authority)) == "nobody"
        assert await who_over(address, with_certificate) == "nobody"
    async with asked(None) as address:
        assert await who_over(address, None) == "nobody"


@pytest.mark.parametrize(
    ("uris", "others", "problem"),
    [
        ([], {}, "the certificate has 0 URIs"),
        ([], {"subject": CI}, "the certificate has 0 URIs"),
        ([], {"names": [x509.DNSName(CI)]}, "the certificate has 0 URIs"),
        ([CI, "spiffe://corp/admin"], {}, "the certificate has 2 URIs"),
        ([CI, CI], {}, "the certificate has 2 URIs"),
        ([CI, "https://corp/ci"], {}, "the certificate has 2 URIs"),
        (["https://corp/ci"], {}, "'https://corp/ci' is no SPIFFE id"),
        (["spiffe://corp"], {}, "'spiffe://corp' is no SPIFFE id"),
        (["spiffe://evil/ci"], {}, "'spiffe://evil/ci' is of another trust domain than corp"),
        (
            [CI],
            {"extensions": [x509.BasicConstraints(ca=True, path_length=None)]},
            "of a CA, not",
        ),
        ([CI], {"extensions": [SIGNS]}, "of a CA, not"),
    ],
)
async def test_a_certificate_of_another_form_proves_nothing(
    served: Certificates, authority: Authority, uris: Sequence[str], others: dict[str, Any], problem: str
) -> None:
    credentials = caller(authority, authority.client(*uris, **others))
    async with asked(served.credentials(Mode.MTLS), "corp") as address:
        said = await who_over(address, credentials)
        assert said.startswith("not proven: ")
        assert problem in said


async def test_callers_with_no_certificate_or_another_cas_or_an_expired_one_are_not_served(
    served: Certificates, authority: Authority
) -> None:
    expired = authority.client(CI, lasts=timedelta(seconds=-1))
    async with asked(served.credentials(Mode.MTLS)) as address:
        for credentials in (
            caller(authority),
            caller(authority, Authority().client(CI)),
            caller(authority, expired),
            None,
        ):
            assert await who_over(address, credentials) == "refused"
        assert await who_over(address, caller(authority, authority.client(CI))) == CI


async def test_a_certificate_that_expires_while_connected_proves_nothing_more(
    served: Certificates, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_at = time.time() + HOUR.total_seconds()
    async with (
        asked(served.credentials(Mode.MTLS)) as address,
        connection(address, caller(authority, authority.client(CI))) as channel,
    ):
        for now, said in ((ends_at - 5, CI), (ends_at + 5, "not proven: the certificate has expired")):
            monkeypatch.setattr(certificates, "time", SimpleNamespace(time=lambda now=now: now))
            assert await who(channel) == said
