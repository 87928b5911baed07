"""A caller with a JWT, and a server's settings that know who that is and may do."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey

LIFETIME_SECONDS = 12 * 3600
# As long as those of CI systems are.
TOKEN_BYTES = 1000
GRANTS = """
[[grant]]
match = { issuer = "corp", group = "deployers" }
role = "admin"
"""


@dataclass(frozen=True)
class Credentials:
    """settings: by field."""

    token: str
    settings: Mapping[str, Any]


def make(folder: Path) -> Credentials:
    key = RSAKey.generate_key(2048, {"kid": "first"})
    keys, grants = folder / "keys.json", folder / "grants.toml"
    keys.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    grants.write_text(GRANTS)
    issuer = {
        "name": "corp",
        "issuer": "https://corp.example",
        "audience": "deployments",
        "jwks_file": str(keys),
        "group_claim": "groups",
    }
    claims: dict[str, object] = {
        "iss": issuer["issuer"],
        "aud": issuer["audience"],
        "sub": "robot",
        "exp": int(time.time()) + LIFETIME_SECONDS,
        "groups": ["deployers"],
    }
    header = {"alg": "RS256", "kid": "first"}
    short = TOKEN_BYTES - len(jwt.encode(header, claims, key))
    claims["more"] = "x" * (short * 3 // 4)
    settings = {"jwt_issuers": json.dumps([issuer]), "grants_file": grants}
    return Credentials(jwt.encode(header, claims, key), settings)
