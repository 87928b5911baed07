"""The server's certificate, its key and the CAs of its callers; replaced while it serves."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from deployment_pipeline import metrics
from deployment_pipeline.edge.listeners import Mode
from deployment_pipeline.edge.reloading import Reloading, Unreadable, content

T = TypeVar("T")
PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey

# Of gRPC's TLS. Some other keys it would take, and then fail at every handshake.
CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MALFORMED = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


class Certificates:
    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Raises Unreadable."""
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self.file = Reloading([path for path in (cert, key, client_ca) if path], self._read)

    def credentials(self, mode: Mode) -> grpc.ServerCredentials:
        """Of one listener: each must be told what has changed. gRPC calls `changed` on threads of its own,
        before every handshake, but never twice at a time. Connections that there are keep what they have."""
        given = self.file.value

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            current = self.file.value
            if current is given:
                return None
            given = current
            return current

        return grpc.dynamic_ssl_server_credentials(
            given,
            changed,  # type: ignore[arg-type]  # None: nothing has changed
            require_client_authentication=mode is Mode.MTLS,
        )

    def _read(self) -> grpc.ServerCertificateConfiguration:
        problems: list[str] = []
        chain = _parsed(self._cert, _certificates, problems)
        key = _parsed(self._key, _private_key, problems)
        cas = _parsed(self._client_ca, _certificates, problems) if self._client_ca else None
        if chain and _ends_at(chain[0]) <= datetime.now(UTC):
            # One that is not valid yet is taken: nobody would look at it again when it is.
            problems.append(f"{self._cert} expired at {_ends_at(chain[0]):%Y-%m-%d %H:%M:%S} UTC")
        if chain and key and chain[0].public_key() != key.public_key():
            problems.append(f"{self._key} is not the key of the first certificate in {self._cert}")
        if problems or not chain or not key:
            raise Unreadable("\n".join(problems))
        metrics.TLS_NOT_AFTER.set(min(map(_ends_at, chain)).timestamp())
        # What was checked is what is served, and nothing else that the files may hold.
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pairs = [(secret, _pem(chain))]
        return grpc.ssl_server_certificate_configuration(pairs, _pem(cas) if cas else None)


def _parsed(path: Path, parse: Callable[[bytes], T], problems: list[str]) -> T | None:
    """None: one more problem."""
    try:
        return parse(content(path))
    except OSError as error:
        problems.append(f"{path} cannot be read: {error.strerror}")
    except ValueError as error:
        problems.append(f"{path} {error}")
    return None


def _certificates(data: bytes) -> Sequence[x509.Certificate]:
    """Raises ValueError."""
    try:
        found = x509.load_pem_x509_certificates(data)
        for certificate in found:
            certificate.public_key()
    except _MALFORMED:
        raise ValueError("does not hold certificates (PEM) that can be read") from None
    return found


def _private_key(data: bytes) -> PrivateKey:
    """Raises ValueError."""
    try:
        key = load_pem_private_key(data, password=None)
    except _MALFORMED:
        raise ValueError("does not hold a private key (PEM, not encrypted) that can be read") from None
    match key:
        case RSAPrivateKey():
            return key
        case EllipticCurvePrivateKey() if key.curve.name in CURVES:
            return key
    raise ValueError("holds a key that gRPC cannot serve: it must be RSA, or EC on P-256, P-384 or P-521")


def _ends_at(certificate: x509.Certificate) -> datetime:
    return certificate.not_valid_after_utc


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
