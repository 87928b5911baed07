"""Callers who are known by their certificate, on an mtls listener."""

import time
from functools import lru_cache, partial

from cryptography import x509

from deployment_pipeline.edge.answers import Context
from deployment_pipeline.edge.identity import spiffe
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.principal import Principal

# About 2 KiB each.
MAX_CERTIFICATES = 10_000
MALFORMED = (ValueError, x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)


class Certified:
    """Reads a certificate once: to parse it takes a hundred times as long as to find it again."""

    def __init__(self, trust_domain: str) -> None:
        """trust_domain: the only one whose ids are accepted; empty: any."""
        # What raises is not kept, so nobody fills this with certificates that prove nothing.
        self._read = lru_cache(MAX_CERTIFICATES)(partial(_read, trust_domain=trust_domain))

    def principal(self, context: Context) -> Principal | None:
        """None: the caller has not shown a certificate, for it was not asked. Raises NotProven, also for a
        certificate that has expired since: its connection goes on."""
        # Cheaper than the rest, for callers without a certificate.
        if context.peer_identity_key() is None:
            return None
        [pem] = context.auth_context()["x509_pem_cert"]
        principal = self._read(pem)
        if time.time() > principal.expires_at:
            raise NotProven("the certificate has expired")
        return principal


def _read(pem: bytes, trust_domain: str) -> Principal:
    """Of what the handshake has verified: a chain of signatures up to a CA of ours, and times."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extensions = certificate.extensions
    except MALFORMED as error:
        raise NotProven(f"the certificate cannot be read: {error}") from error
    if _signs_others(extensions):
        raise NotProven("it is the certificate of a CA, not of a caller")
    uris = _uris(extensions)
    if len(uris) != 1:
        raise NotProven(f"the certificate has {len(uris)} URIs in place of one")
    spiffe.check(uris[0], trust_domain)
    return Principal(uris[0], expires_at=certificate.not_valid_after_utc.timestamp())


def _signs_others(extensions: x509.Extensions) -> bool:
    for extension in extensions:
        match extension.value:
            case x509.BasicConstraints(ca=True):
                return True
            case x509.KeyUsage() as usage if usage.key_cert_sign or usage.crl_sign:
                return True
    return False


def _uris(extensions: x509.Extensions) -> list[str]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
