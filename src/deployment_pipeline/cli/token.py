"""Making static tokens."""

import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import NamedTuple

from deployment_pipeline.edge.identity.static_tokens import PREFIX, checked_name, id_of

# Nobody guesses 256 bits, so a plain digest, which is quick to make, protects them.
RANDOM_BYTES = 32
# Ten years. Whoever means "for ever" leaves it out.
MAX_DAYS = 3650

_SHOWN_ONCE = """\
Here is the token. Nobody can show it to you again:

  {text}

Callers send it as `authorization: Bearer TOKEN`, and are then {id}. It is accepted as soon as the entry on
standard output is in the file that DP_TOKENS_FILE names.
"""


class Token(NamedTuple):
    """for_person: the token itself, and what to do with it. entry: what to append to DP_TOKENS_FILE."""

    text: str
    for_person: str
    entry: str


def make(name: str, groups: Sequence[str], expires_in_days: int | None) -> Token:
    """Raises ValueError."""
    _check(name, groups, expires_in_days)
    text = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    lines = [
        "",  # the file's last line may lack its end
        "[[token]]",
        f"name = {_string(name)}",
        f'sha256 = "{sha256(text.encode()).hexdigest()}"',
    ]
    if groups:
        lines.append(f"groups = [{', '.join(map(_string, groups))}]")
    if expires_in_days is not None:
        lines.append(f"expires_at = {datetime.now(UTC) + timedelta(expires_in_days):%Y-%m-%dT%H:%M:%SZ}")
    return Token(text, _SHOWN_ONCE.format(text=text, id=id_of(name)), "\n".join(lines))


def _check(name: str, groups: Sequence[str], expires_in_days: int | None) -> None:
    try:
        checked_name(name)
    except ValueError as error:
        raise ValueError(f"NAME {error}") from None
    if not all(group and group.isprintable() for group in groups):
        raise ValueError("--group must be printable text")
    if expires_in_days is not None and not 1 <= expires_in_days <= MAX_DAYS:
        raise ValueError(f"--expires-in must be 1 to {MAX_DAYS} days")


def _string(text: str) -> str:
    """As TOML writes printable text, which is how JSON does."""
    return json.dumps(text, ensure_ascii=False)
