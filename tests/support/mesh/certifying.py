"""An Envoy that asks its callers for certificates, and tells the service whose they were."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from support.certificates import LOOPBACK, Authority, Pair
from support.mesh.envoy import NOTHING, Config, envoy, gateway
from support.mesh.programs import NotInstalled
from support.mesh.report import REPORT

SANITIZE_SET = "SANITIZE_SET"
APPEND_FORWARD = "APPEND_FORWARD"
# What it can write into its element of the header.
EVERYTHING = {"subject": True, "cert": True, "chain": True, "uri": True, "dns": True}


@contextlib.contextmanager
def certifying(
    upstream: str,
    authority: Authority,
    id: str,
    forward: str = SANITIZE_SET,
    details: Mapping[str, bool] = EVERYTHING,
    *,
    encrypts: bool = True,
    virtual_host: Mapping[str, Any] = NOTHING,
) -> Iterator[str]:
    """Yields its address. id: of its own certificate, which it shows on both sides. forward, details: what it
    does with the header. encrypts: it speaks mutual TLS to the service, too."""
    own = authority.client(id, names=[LOOPBACK])
    config = gateway(
        [upstream],
        filter_chain={
            "transport_socket": _tls("Downstream", own, authority, require_client_certificate=True)
        },
        connection_manager={
            "forward_client_cert_details": forward,
            "set_current_client_cert_details": details,
        },
        virtual_host=virtual_host,
        cluster={"transport_socket": _tls("Upstream", own, authority)} if encrypts else NOTHING,
    )
    try:
        with envoy(config) as started:
            yield started.address
    except NotInstalled as error:
        REPORT.not_run["Envoy, identity"] = str(error)
        pytest.fail(f"NOT RUN: {error}")


def _tls(kind: str, pair: Pair, authority: Authority, **others: Any) -> Config:
    """A socket of Envoy's, towards its callers ("Downstream") or the service ("Upstream"). pair: what it
    shows them."""
    certificate = {
        "certificate_chain": {"inline_string": pair.chain.decode()},
        "private_key": {"inline_string": pair.key.decode()},
    }
    context = {
        "tls_certificates": [certificate],
        "validation_context": {"trusted_ca": {"inline_string": authority.pem.decode()}},
        "alpn_protocols": ["h2"],
    }
    type_url = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext"
    config = {"@type": type_url, "common_tls_context": context, **others}
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}
