"""Static tokens: DP_TOKENS_FILE has the SHA-256 of each, so reading the file lets nobody in."""

import math
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from deployment_pipeline.edge.identity.issuer import STATIC
from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.edge.reloading import Reloading, Unreadable, content
from deployment_pipeline.principal import Principal, is_id

# What every token begins with: JWTs never do, and those who scan for leaked secrets find it.
PREFIX = "dpt_"


def checked_name(name: str) -> str:
    """Raises ValueError."""
    if not name or not is_id(id_of(name)):
        raise ValueError("must be printable ASCII without blanks, and not too long for an id")
    return name


def id_of(name: str) -> str:
    return f"{STATIC}:{name}"


class _Token(BaseModel):
    """An entry of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, AfterValidator(checked_name)]
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]
    groups: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    expires_at: AwareDatetime | None = None

    def principal(self) -> Principal:
        expires_at = self.expires_at.timestamp() if self.expires_at else math.inf
        return Principal(
            id_of(self.name),
            issuer=STATIC,
            display_name=self.name,
            groups=tuple(self.groups),
            expires_at=expires_at,
        )


class StaticTokens:
    """file: whom each token names, by its SHA-256."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises Unreadable."""
        self._clock = clock
        self.file: Reloading[Mapping[bytes, Principal]] = Reloading([path], lambda: _read(path))

    def principal(self, token: str) -> Principal:
        """Raises NotProven."""
        # A dict's look-up takes longer for some digests than for others. That tells nothing of a token.
        found = self.file.value.get(sha256(token.encode()).digest())
        if found is None:
            raise NotProven("the token is not in DP_TOKENS_FILE")
        if found.expires_at <= self._clock():
            raise NotProven(f"the token {found.display_name} has expired")
        return found


def _read(path: Path) -> Mapping[bytes, Principal]:
    """A file without any token is fine: the last one may have been revoked."""
    try:
        found = tomllib.loads(content(path).decode())
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8
        raise Unreadable(f"{path} is no TOML: {error}") from None
    entries = found.pop("token", [])
    problems = [f"{key}: there is nothing of that name; there is [[token]]" for key in found]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        problems.append("token: must be tables, each of which begins with [[token]]")
        entries = []
    tokens = [token for place, entry in _placed(entries) if (token := _parsed(place, entry, problems))]
    problems += _twice(entries)
    if problems:
        raise Unreadable("\n  ".join([f"{path} cannot be used:", *problems]))
    return {bytes.fromhex(token.sha256): token.principal() for token in tokens}


def _placed(entries: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each entry is, for people."""
    for number, entry in enumerate(entries, 1):
        named = f' ("{entry["name"]}")' if isinstance(entry.get("name"), str) else ""
        yield f"[[token]] {number}{named}", entry


def _parsed(place: str, entry: dict[str, Any], problems: list[str]) -> _Token | None:
    try:
        return _Token.model_validate(entry)
    except ValidationError as error:
        # Without the values: somebody may have put the token where its digest should be.
        problems += [f"{place}: {_field(e['loc'])}: {_rule(e['type'], e['msg'])}" for e in error.errors()]
        return None


def _field(place: Sequence[str | int]) -> str:
    return ".".join(map(str, place))


def _rule(type: str, message: str) -> str:
    match type:
        case "missing":
            return "is missing"
        case "string_too_short":
            return "must not be empty"
        case "extra_forbidden":
            return f"there is no such key; there are {', '.join(_Token.model_fields)}"
        case "string_pattern_mismatch":
            return "must be the token's SHA-256, as 64 hex digits"
        case "timezone_aware":
            return "must have an offset from UTC, such as Z at its end"
        case _:
            return message.removeprefix("Value error, ").replace("Input should", "must")


def _twice(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = Counter(name for entry in entries if isinstance(name := entry.get("name"), str))
    digests = Counter(digest.lower() for entry in entries if isinstance(digest := entry.get("sha256"), str))
    yield from (f'name "{name}": two tokens must not share it' for name, count in names.items() if count > 1)
    for digest in (digest for digest, count in digests.items() if count > 1):
        sharing = [place for place, entry in _placed(entries) if str(entry.get("sha256")).lower() == digest]
        yield f"{' and '.join(sharing)}: two entries must not have the same sha256"
