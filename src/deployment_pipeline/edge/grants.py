"""Who has which role, and where. A table of four roles and prefixes of names.

A pattern is exact, or ends in one * that stands for anything. A principal has all the roles of all grants
that match; a deny that matches takes them all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
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

    def fits(self, principal: Principal) -> bool:
        return (
            (not self.id or fits(self.id, principal.id))
            and (not self.issuer or self.issuer == principal.issuer)
            and (not self.group or any(fits(self.group, group) for group in principal.groups))
            and all(
                any(fits(pattern, text) for text in _texts(principal.claims.get(name)))
                for name, pattern in self.claim.items()
            )
        )


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
        self.impersonates = any(grant.impersonate for grant in grants)
        # The highest role on all pipelines, and the highest on any.
        self.everywhere = max((grant.role for grant in grants if not grant.pipelines), default=Role.NONE)
        self.anywhere = max((grant.role for grant in grants), default=Role.NONE)
        sees = EVERYTHING if self.everywhere else _ranges(grants)
        # As whom they make a change, unless it is for somebody else.
        self.caller = Caller(principal, principal.id, "", sees)

    def role(self, pipeline: str) -> Role:
        name = pipeline.lower()
        there = [g.role for g in self.grants if any(fits(pattern, name) for pattern in g.pipelines)]
        return max(self.everywhere, *there, Role.NONE)


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
        return Access(principal, [grant for grant in self._grants if grant.match.fits(principal)])

    def denies(self, principal: Principal) -> bool:
        return any(deny.fits(principal) for deny in self._denies)
