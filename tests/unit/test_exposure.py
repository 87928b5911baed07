"""What is refused before it serves: open listeners, missing files, identity without rights."""

from pathlib import Path
from typing import Any

import pytest

from deployment_pipeline.run import exposure
from deployment_pipeline.run.settings import InvalidSettings, Settings

CERTIFICATE = {"tls_cert": Path("tls.crt"), "tls_key": Path("tls.key")}
CLIENT_CA = {"tls_client_ca": Path("ca.crt")}
MTLS = {"listen": "mtls://0.0.0.0:50051", **CERTIFICATE, **CLIENT_CA}
GRANTS = {"grants_file": Path("grants.toml")}
TOKENS = {"tokens_file": Path("tokens.toml")}
ISSUERS = {
    "jwt_issuers": '[{"name": "corp", "issuer": "https://corp", "audience": "dp", "jwks_url": "https://corp/keys"}]'
}
BEYOND = {"listen": "0.0.0.0:50051"}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"listen": "[::1]:0,localhost:1,127.8.8.8:2"},
        {"listen": "tls://127.0.0.1:50051", **CERTIFICATE},
        {"tls": "tls", **CERTIFICATE},
        {"listen": "tls://0.0.0.0:50051", "anonymous": "viewer", **CERTIFICATE},
        {**MTLS, **GRANTS},
        {**BEYOND, "tls": "mtls", **CERTIFICATE, **CLIENT_CA, **GRANTS},
        {**BEYOND, "insecure": True, "anonymous": "admin"},
        {**BEYOND, "insecure": True, "anonymous": "none"},
        {**BEYOND, "insecure": True, **TOKENS, **GRANTS},
        {**BEYOND, "insecure": True, **ISSUERS, **GRANTS},
        {**BEYOND, "insecure": True, "xfcc_from": "10.0.0.0/8", **GRANTS},
        {**MTLS, "xfcc_from": "spiffe://corp/gateway", **GRANTS},
        {
            **MTLS,
            "listen": "mtls://127.0.0.1:1,tls://127.0.0.1:2",
            "xfcc_from": "127.0.0.0/8,spiffe://corp/gateway",
            **GRANTS,
        },
        {**TOKENS, **GRANTS},
    ],
)
def test_these_may_serve(given: dict[str, Any]) -> None:
    exposure.check(Settings(**given))


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({"tls": "tls"}, ["DP_TLS_CERT: must be set for tls://127", "DP_TLS_KEY: must be set for tls://127"]),
        (
            {"listen": "mtls://127.0.0.1:1", **GRANTS},
            ["DP_TLS_CERT: must", "DP_TLS_KEY: must", "DP_TLS_CLIENT_CA: must be set for mtls://127.0.0.1:1"],
        ),
        ({"tls": "tls", "tls_cert": Path("tls.crt")}, ["DP_TLS_KEY: must be set"]),
        ({**MTLS, **GRANTS, "tls_client_ca": None}, ["DP_TLS_CLIENT_CA: must be set"]),
        # Who sets these believes that they protect something.
        (CERTIFICATE, ["DP_TLS_CERT: no listener uses it", "DP_TLS_KEY: no listener uses it"]),
        ({"tls": "tls", **CERTIFICATE, **CLIENT_CA}, ["DP_TLS_CLIENT_CA: no listener uses it"]),
        (
            BEYOND,
            [
                "DP_LISTEN: 0.0.0.0:50051 is beyond loopback and without TLS",
                "DP_ANONYMOUS: 0.0.0.0:50051 is beyond loopback, and nobody there can prove who they are",
            ],
        ),
        ({**BEYOND, "insecure": True}, ["DP_ANONYMOUS: "]),
        ({**BEYOND, "anonymous": "admin"}, ["DP_LISTEN: "]),
        ({"listen": "tls://0.0.0.0:50051", **CERTIFICATE}, ["DP_ANONYMOUS: "]),
        (
            {"listen": "127.0.0.1:1,plain://10.0.0.1:2,tls://10.0.0.1:3", **CERTIFICATE, "anonymous": "none"},
            ["DP_LISTEN: 10.0.0.1:2 is"],
        ),
        ({**BEYOND, "jwt_issuers": "[]", "insecure": True}, ["DP_ANONYMOUS: "]),
        (TOKENS, ["DP_GRANTS_FILE: must be set"]),
        (ISSUERS, ["DP_GRANTS_FILE: must be set"]),
        (MTLS, ["DP_GRANTS_FILE: must be set"]),
        ({"xfcc_from": "127.0.0.0/8"}, ["DP_GRANTS_FILE: must be set"]),
        ({"xfcc_from": "127.0.0.0/8,spiffe://corp/gateway", **GRANTS}, ["DP_XFCC_FROM: "]),
        ({**MTLS, "xfcc_from": "127.0.0.0/8", **GRANTS}, ["DP_XFCC_FROM: on an mtls:// listener"]),
        (
            {"listen": "0.0.0.0:1,tls://127.0.0.1:2", "xfcc_from": "spiffe://corp/gateway"},
            ["DP_TLS_CERT: ", "DP_TLS_KEY: ", "DP_LISTEN: ", "DP_GRANTS_FILE: ", "DP_XFCC_FROM: "],
        ),
    ],
)
def test_what_is_wrong_is_said_all_at_once(given: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(InvalidSettings) as error:
        exposure.check(Settings(**given))
    lines = str(error.value).splitlines()
    assert len(lines) == len(problems), lines
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(problem)


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ({}, "admin"),
        ({"listen": "tls://[::1]:1,localhost:2", **CERTIFICATE}, "admin"),
        ({"anonymous": "viewer"}, "viewer"),
        ({"anonymous": "none"}, "none"),
        ({**BEYOND, "insecure": True}, "none"),
        ({"listen": "127.0.0.1:1,10.0.0.1:2"}, "none"),
        (TOKENS, "none"),
        (ISSUERS, "none"),
        ({"xfcc_from": "127.0.0.0/8"}, "none"),
        ({"listen": "mtls://127.0.0.1:1"}, "none"),
        ({**TOKENS, "anonymous": "viewer"}, "viewer"),
        ({**BEYOND, "anonymous": "admin"}, "admin"),
    ],
)
def test_what_anonymous_callers_may_do(given: dict[str, Any], role: str) -> None:
    assert exposure.anonymous_role(Settings(**given)) == role


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.255.254", "localhost", "[::1]", "::1"])
def test_these_hosts_are_loopback(host: str) -> None:
    assert exposure.is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "[::]", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", "[fe80::1]", "dp"],  # noqa: S104
)
def test_these_hosts_are_beyond(host: str) -> None:
    assert not exposure.is_loopback(host)
