"""The server's certificate: what is refused, and how it is replaced while it serves."""

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # gRPC has no other name for it
from structlog.testing import capture_logs

from deployment_pipeline import metrics
from deployment_pipeline.edge.listeners import Mode
from deployment_pipeline.edge.reloading import Unreadable
from deployment_pipeline.edge.tls import Certificates
from support.certificates import HOUR, Authority, Pair, Secret, caller
from support.handshakes import asked, connection, who, who_over

CI = "spiffe://corp/ci"
EXPIRED = timedelta(seconds=-1)
MALFORMED = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture
def secret(tmp_path: Path, authority: Authority) -> Secret:
    return Secret(tmp_path, authority.server(), authority)


def read(secret: Secret) -> Certificates:
    return Certificates(secret.cert, secret.key, secret.client_ca)


def encrypted(key: bytes) -> bytes:
    found = load_pem_private_key(key, password=None)
    return found.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def not_after(chain: bytes) -> float:
    return x509.load_pem_x509_certificate(chain).not_valid_after_utc.timestamp()


def test_every_problem_is_said_at_once(tmp_path: Path) -> None:
    missing = [tmp_path / name for name in ("tls.crt", "tls.key", "ca.crt")]
    with pytest.raises(Unreadable) as error:
        Certificates(*missing)
    assert str(error.value).splitlines() == [
        f"{path} cannot be read: No such file or directory" for path in missing
    ]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"chain": b""}, "tls.crt does not hold certificates"),
        ({"chain": MALFORMED}, "tls.crt does not hold certificates"),
        ({"key": b"-----BEGIN PRIVATE KEY-----\n"}, "tls.key does not hold a private key"),
        ({"client_ca": b"a CA"}, "ca.crt does not hold certificates"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    secret: Secret, authority: Authority, broken: dict[str, bytes], problem: str
) -> None:
    pair = authority.server()
    secret.put(**{"key": pair.key, "chain": pair.chain, "client_ca": authority.pem, **broken})
    with pytest.raises(Unreadable, match=problem) as error:
        read(secret)
    assert len(str(error.value).splitlines()) == 1


def test_a_pair_that_cannot_be_served_is_refused(secret: Secret, authority: Authority) -> None:
    good, expired = authority.server(), authority.server(lasts=EXPIRED)
    ed = authority.server(key=ed25519.Ed25519PrivateKey.generate())
    unusual = authority.server(key=ec.generate_private_key(ec.SECP256K1()))
    for key, chain, problem in (
        (authority.server().key, good.chain, "tls.key is not the key of the first certificate in .*tls.crt"),
        (good.key, authority.pem + good.chain, "tls.key is not the key of the first certificate in"),
        (encrypted(good.key), good.chain, r"tls.key does not hold a private key \(PEM, not encrypted\)"),
        (expired.key, expired.chain, r"tls.crt expired at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"),
        (ed.key, ed.chain, "tls.key holds a key that gRPC cannot serve: it must be RSA, or EC on P-256"),
        (unusual.key, unusual.chain, "tls.key holds a key that gRPC cannot serve"),
    ):
        secret.put(key, chain, authority.pem)
        with pytest.raises(Unreadable, match=problem):
            read(secret)


async def test_the_metric_says_when_the_first_of_the_chain_expires(
    secret: Secret, authority: Authority
) -> None:
    leaf, other = authority.server(lasts=2 * HOUR), authority.server(lasts=HOUR)
    secret.put(leaf.key, leaf.chain + other.chain, authority.pem)
    certificates = read(secret)
    assert metrics.REGISTRY.get_sample_value("dp_tls_not_after_seconds") == not_after(other.chain)
    secret.put(leaf.key, leaf.chain, authority.pem)
    certificates.file.look()
    assert metrics.REGISTRY.get_sample_value("dp_tls_not_after_seconds") == not_after(leaf.chain)


async def test_new_connections_get_the_new_certificate_and_old_ones_go_on(
    secret: Secret, authority: Authority
) -> None:
    certificates, other = read(secret), Authority()
    async with (
        asked(certificates.credentials(Mode.TLS)) as one,
        asked(certificates.credentials(Mode.TLS)) as two,
        connection(one, caller(authority)) as old,
    ):
        assert await who(old) == "nobody"
        pair = other.server()
        secret.put(pair.key, pair.chain, authority.pem)
        certificates.file.look()
        for address in (one, two, one):
            assert await who_over(address, caller(authority)) == "refused"
            assert await who_over(address, caller(other)) == "nobody"
        assert await who(old) == "nobody"


async def test_callers_of_a_ca_that_was_removed_cannot_connect_again(
    secret: Secret, authority: Authority
) -> None:
    certificates, other, pair = read(secret), Authority(), authority.server()
    # With what a client remembers of a connection, the next one can do without its certificate.
    sessions = ("grpc.ssl_session_cache", cygrpc.SSLSessionCacheLRU(10))
    credentials = caller(authority, authority.client(CI))
    async with (
        asked(certificates.credentials(Mode.MTLS)) as address,
        connection(address, credentials) as old,
    ):
        assert await who(old) == CI
        assert await who_over(address, credentials, sessions) == CI
        secret.put(pair.key, pair.chain, other.pem)
        certificates.file.look()
        assert await who_over(address, credentials, sessions) == "refused"
        assert await who_over(address, caller(authority, other.client(CI))) == CI
        assert await who(old) == CI


async def test_a_broken_pair_leaves_the_last_good_one(secret: Secret, authority: Authority) -> None:
    certificates, other = read(secret), Authority()
    new, expired = other.server(), other.server(lasts=EXPIRED)
    async with asked(certificates.credentials(Mode.TLS)) as address:
        for broken in (
            Pair(new.key, other.server().chain),
            Pair(b"", new.chain),
            Pair(new.key, b""),
            # One that has expired already: the last one may still be valid.
            expired,
        ):
            with capture_logs() as lines:
                secret.put(broken.key, broken.chain, authority.pem)
                certificates.file.look()
                certificates.file.look()
            assert [line["log_level"] for line in lines] == ["error"]
            assert await who_over(address, caller(authority)) == "nobody"
        secret.put(new.key, new.chain, authority.pem)
        certificates.file.look()
        assert await who_over(address, caller(other)) == "nobody"


async def test_a_pair_that_is_half_written_is_taken_when_it_is_whole(
    tmp_path: Path, authority: Authority
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    old, other = authority.server(), Authority()
    new = other.server()
    cert.write_bytes(old.chain)
    key.write_bytes(old.key)
    certificates = Certificates(cert, key, None)
    async with asked(certificates.credentials(Mode.TLS)) as address:
        cert.write_bytes(new.chain)
        certificates.file.look()
        assert await who_over(address, caller(authority)) == "nobody"
        key.write_bytes(new.key)
        certificates.file.look()
        assert await who_over(address, caller(other)) == "nobody"


async def test_tls_and_plain_do_not_mix(secret: Secret, authority: Authority) -> None:
    async with asked(read(secret).credentials(Mode.TLS)) as encrypted_address, asked(None) as plain_address:
        assert await who_over(encrypted_address, None) == "refused"
        assert await who_over(plain_address, caller(authority)) == "refused"
