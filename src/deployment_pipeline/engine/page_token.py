"""Page tokens: where a list goes on, signed, so that a changed or foreign one is refused.

A token belongs to one list with one set of filters. It holds a key into the list and not a number of rows,
so pages neither repeat nor miss what existed at the first one.
"""

import base64
import hmac
import json
from collections.abc import Sequence

from deployment_pipeline.fields import Rules

_SIGNATURE_BYTES = 16


class PageTokens:
    """The tokens of one list. filters: what must be the same from page to page; those that are empty do not
    count, so a release with one more filter knows the tokens of the release before."""

    def __init__(self, key: bytes, of: str, **filters: str | Sequence[str]) -> None:
        self._key = key
        given = {name: value for name, value in filters.items() if value}
        self._about = json.dumps([of, given], sort_keys=True).encode()

    def _sign(self, position: bytes) -> bytes:
        return hmac.digest(self._key, self._about + b"\0" + position, "sha256")[:_SIGNATURE_BYTES]

    def dump(self, position: str) -> str:
        return _encode(self._sign(position.encode()) + position.encode())

    def load(self, rules: Rules, token: str) -> str | None:
        """The position; None for an empty token. A token that is not of this list breaks the rules."""
        if not token:
            return None
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        signature, position = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if _encode(raw) != token or not hmac.compare_digest(signature, self._sign(position)):
            rules.broken(
                "page_token",
                "is not a token of this list; pass the next_page_token of an answer to the same request",
            )
            return None
        return position.decode()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
