"""Who has which role, and where. A table of four roles and prefixes of names.

A pattern is exact, or ends in one * that stands for anything. A principal has all the roles of all grants
that match; a deny that matches takes them all.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import Any

from deployment_pipeline.call import EVERYTHING, Caller, Names
from deployment_pipeline.principal import Principal

ANY = "*"


class Role(IntEnum):
    """Each may do what those before it may."""

    NONE = 0
    VIEWER = 1
    DEPLOYER = 2
    OPERATOR = 3
    ADMIN = 4

    def __str__(self) -> str:
        return self.name.lower()


def fits(pattern: str, value: str) -> bool:
    return value.startswith(pattern[:-1]) if pattern.endswith(ANY) else value == pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Whom a grant or a deny is for: all that is given must fit. Groups and claims are those of an issuer."""

    id: str = ""
    issuer: str = ""
    group: str = ""
    claim: Mapping[str, str] = field(default_factory=dict)

    def fits(self, credential: "_Credential") -> bool:
        return (
            (not self.id or fits(self.id, credential.id))
            and (not self.issuer or self.issuer == credential.issuer)
            and (not self.group or _any_fits(self.group, credential.groups))
            and all(_any_fits(pattern, credential.claim(name)) for name, pattern in self.claim.items())
        )


class _Credential:
    """What a principal's proof says, as sets: a thousand groups and a thousand grants are a million pairs."""

    def __init__(self, principal: Principal) -> None:
        self.id, self.issuer = principal.id, principal.issuer
        self.groups = frozenset(principal.groups)
        self.claim = cache(lambda name: frozenset(_texts(principal.claims.get(name))))


def _any_fits(pattern: str, texts: Collection[str]) -> bool:
    return any(fits(pattern, text) for text in texts) if pattern.endswith(ANY) else pattern in texts


def _texts(claim: Any) -> Iterator[str]:
    """What a claim says; a list says each of its items."""
    match claim:
        case bool():
            yield str(claim).lower()
        case str() | int():
            yield str(claim)
        case list():
            for item in claim:
                yield from _texts(item)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """pipelines: patterns, in lower case; empty: all."""

    match: Match
    role: Role
    pipelines: Sequence[str] = ()
    impersonate: bool = False
    approve_for_others: bool = False


class Access:
    """What one principal may do."""

    def __init__(self, principal: Principal, grants: Sequence[Grant], *, is_denied: bool = False) -> None:
        self.grants = grants
        self.is_denied = is_denied
        # The highest role on all pipelines, and the highest on any.
        self.everywhere = max((grant.role for grant in grants if not grant.pipelines), default=Role.NONE)
        self.anywhere = max((grant.role for grant in grants), default=Role.NONE)
        # The highest role for each pattern: for what stands before a *, and for what is exact.
        self._prefixes: dict[str, Role] = {}
        self._names: dict[str, Role] = {}
        for role, pattern in sorted((grant.role, pattern) for grant in grants for pattern in grant.pipelines):
            if pattern.endswith(ANY):
                self._prefixes[pattern[:-1]] = role
            else:
                self._names[pattern] = role
        self._longest = max(map(len, self._prefixes), default=-1)
        sees = EVERYTHING if self.everywhere else _ranges(grants)
        # As whom they make a change, unless it is for somebody else.
        self.caller = Caller(principal, principal.id, "", sees)

    def impersonates(self, pipeline: str) -> bool:
        """Whether they may act for others there. pipeline: empty: nowhere in particular."""
        return any(
            grant.impersonate
            and (
                not (pipeline and grant.pipelines)
                or any(fits(pattern, pipeline.lower()) for pattern in grant.pipelines)
            )
            for grant in self.grants
        )

    def role(self, pipeline: str) -> Role:
        """On the path of every call: the price does not grow with the number of grants."""
        name = pipeline.lower()
        prefixes = (name[:length] for length in range(min(len(name), self._longest) + 1))
        return max(
            self.everywhere,
            self._names.get(name, Role.NONE),
            *(self._prefixes.get(prefix, Role.NONE) for prefix in prefixes),
        )


def _ranges(grants: Sequence[Grant]) -> Names:
    """Of the names that some grants are for, without an overlap, in their order."""
    ranges: list[tuple[str, str]] = []
    for low, high in sorted({_range(pattern) for grant in grants for pattern in grant.pipelines}):
        if ranges and low < ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], high))
        else:
            ranges.append((low, high))
    return ranges


def _range(pattern: str) -> tuple[str, str]:
    """From the first name that fits to the first that does not any more."""
    if not pattern.endswith(ANY):
        return pattern, f"{pattern}\x01"  # below it there is no longer name
    prefix = pattern[:-1]
    return (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)) if prefix else EVERYTHING[0]


class Grants:
    """All that there are."""

    def __init__(self, grants: Sequence[Grant] = (), denies: Sequence[Match] = ()) -> None:
        self._grants = grants
        self._denies = denies

    def access(self, principal: Principal) -> Access:
        if self.denies(principal):
            return Access(principal, (), is_denied=True)
        credential = _Credential(principal)
        return Access(principal, [grant for grant in self._grants if grant.match.fits(credential)])

    def denies(self, principal: Principal) -> bool:
        credential = _Credential(principal)
        return any(deny.fits(credential) for deny in self._denies)
