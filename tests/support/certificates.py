"""Certificates for tests: of servers, and of callers with any URIs and times."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes as PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

HOUR = timedelta(hours=1)
CURVE = ec.SECP256R1()
LOOPBACK = x509.IPAddress(ip_address("127.0.0.1"))


@dataclass(frozen=True)
class Pair:
    """A private key, and the certificate for it (PEM)."""

    key: bytes
    chain: bytes


class Authority:
    """A CA."""

    def __init__(self) -> None:
        ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.pem = ca.cert_pem.bytes()
        self._name = x509.load_pem_x509_certificate(self.pem).subject
        key = load_pem_private_key(ca.private_key_pem.bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    def server(self, *, lasts: timedelta = HOUR, key: PrivateKey | None = None) -> Pair:
        """For 127.0.0.1. lasts: from now on. key: one made by `cryptography`, instead of a new one."""
        return self._issue([LOOPBACK], "server", lasts, key)

    def client(
        self,
        *uris: str,
        names: Sequence[x509.GeneralName] = (),
        subject: str = "",
        lasts: timedelta = HOUR,
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> Pair:
        """A caller's, with these URIs, and other names, as its subject alternative names."""
        found = [x509.UniformResourceIdentifier(uri) for uri in uris]
        return self._issue([*found, *names], subject, lasts, None, extensions)

    def _issue(
        self,
        names: Sequence[x509.GeneralName],
        subject: str,
        lasts: timedelta,
        key: PrivateKey | None,
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> Pair:
        own = key or ec.generate_private_key(CURVE)
        now = datetime.now(UTC)
        ends_at = now + lasts
        common = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(common))
            .issuer_name(self._name)
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, ends_at) - HOUR)
            .not_valid_after(ends_at)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        secret = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Pair(secret, certificate.public_bytes(Encoding.PEM))


class Secret:
    """The server's files in a folder, as Kubernetes mounts a Secret: links, replaced by one rename."""

    def __init__(self, folder: Path, pair: Pair, client_ca: Authority | None = None) -> None:
        self._folder = folder
        self._puts = 0
        self.cert, self.key, self.client_ca = (folder / name for name in ("tls.crt", "tls.key", "ca.crt"))
        self.put(pair.key, pair.chain, client_ca.pem if client_ca else b"")
        for path in (self.cert, self.key, self.client_ca):
            path.symlink_to(Path("..data") / path.name)

    def put(self, key: bytes, chain: bytes, client_ca: bytes) -> None:
        self._puts += 1
        folder = self._folder / f"..{self._puts}"
        folder.mkdir()
        for name, data in (("tls.key", key), ("tls.crt", chain), ("ca.crt", client_ca)):
            (folder / name).write_bytes(data)
        new = self._folder / "..new"
        new.symlink_to(folder.name)
        os.replace(new, self._folder / "..data")

    def settings(self) -> dict[str, Path]:
        """For `Settings`; without the callers' CA if it has none."""
        found = {"tls_cert": self.cert, "tls_key": self.key, "tls_client_ca": self.client_ca}
        return {name: path for name, path in found.items() if path.stat().st_size}


def caller(authority: Authority, pair: Pair | None = None) -> grpc.ChannelCredentials:
    """Of a client that trusts that CA, with a certificate of its own or without."""
    if pair is None:
        return grpc.ssl_channel_credentials(authority.pem)
    return grpc.ssl_channel_credentials(authority.pem, pair.key, pair.chain)
