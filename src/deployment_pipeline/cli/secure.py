"""What a first try needs to be served over TLS, to callers who must say who they are: a CA of its own, a
certificate, a token and grants. They are made once, and used again until the certificate ends."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from deployment_pipeline.cli import token
from deployment_pipeline.edge.identity.static_tokens import id_of

HOSTS = ("localhost", "127.0.0.1", "::1")
LIFETIME = timedelta(days=90)
# Of the token.
NAME = "me"
GRANTS = f"""\
# Who may do what; see docs/security.md. It is read again when it changes.
[[grant]]
match = {{ id = "{id_of(NAME)}" }}
role = "admin"
"""
# The settings that are its business alone.
FIELDS = (
    *("tls", "tls_cert", "tls_key", "tls_client_ca"),
    *("tokens_file", "jwt_issuers", "xfcc_from", "grants_file"),
)


def prepare(folder: Path) -> Mapping[str, Path | str]:
    """Make what is missing. Returns the settings that serve with it, by field. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca, cert, key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    if not _is_current(cert):
        _certify(ca, cert, key)
    tokens, grants = folder / "tokens.toml", folder / "grants.toml"
    if not tokens.exists():
        made = token.make(NAME, [], None)
        _write(folder / "token", made.text + "\n")
        _write(tokens, made.entry + "\n")
    if not grants.exists():
        _write(grants, GRANTS)
    return {
        "tls": "tls",
        "tls_cert": cert,
        "tls_key": key,
        "tokens_file": tokens,
        "grants_file": grants,
    }


def _is_current(cert: Path) -> bool:
    if not cert.exists():
        return False
    return x509.load_pem_x509_certificate(cert.read_bytes()).not_valid_after_utc > datetime.now(UTC)


def _certify(ca: Path, cert: Path, key: Path) -> None:
    """The CA's key is forgotten: nobody can sign anything else with it."""
    ca_key, own_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _name("deployment-pipeline, a private CA for a first try")
    authority = _builder(issuer, issuer, ca_key).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    hosts = [_host(host) for host in HOSTS]
    server = _builder(issuer, _name("localhost"), own_key).add_extension(
        x509.SubjectAlternativeName(hosts), critical=False
    )
    _write(ca, authority.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM).decode())
    secret = own_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write(key, secret.decode())
    _write(cert, server.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM).decode())


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, text: str) -> None:
    """For the owner alone."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
