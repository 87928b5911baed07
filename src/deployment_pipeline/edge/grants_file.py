"""The file that DP_GRANTS_FILE names, in TOML.

[[grant]]
match = { issuer = "corp", group = "deployers" }
role = "deployer"
pipelines = ["shop", "team-a/*"]

[[deny]]
match = { id = "spiffe://corp/ci/old" }
"""

import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deployment_pipeline.edge.grants import ANY, Grant, Grants, Match, Role
from deployment_pipeline.edge.reloading import Unreadable, content

ROLES = {str(role): role for role in Role if role}
_GRANT = ("match", "role", "pipelines", "impersonate", "approve_for_others")
_MATCH = ("id", "issuer", "group", "claim")
# What names of pipelines can be, with room for those of folders.
_NAMES = re.compile(r"[a-z0-9/-]*\*?")


def read(path: Path, issuers: Collection[str]) -> Grants:
    """issuers: the names of those whose groups and claims there are. Raises Unreadable with every problem."""
    try:
        found = tomllib.loads(content(path).decode())
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path} is not TOML: {error}") from None
    reading = _Reading(issuers)
    grants = reading.file(found)
    if reading.problems:
        raise Unreadable("\n".join(f"{path}: {problem}" for problem in reading.problems))
    return grants


class _Reading:
    """One pass over a file, and what is wrong with it."""

    def __init__(self, issuers: Collection[str]) -> None:
        self._issuers = issuers
        self.problems: list[str] = []

    def file(self, content: Mapping[str, Any]) -> Grants:
        self._known("the file", content, ("grant", "deny"))
        grants = [self._grant(f"grant {n}", table) for n, table in self._tables(content, "grant")]
        denies = []
        for n, table in self._tables(content, "deny"):
            self._known(f"deny {n}", table, ("match",))
            denies.append(self._match(f"deny {n}", table.get("match")))
        return Grants(grants, denies)

    def _tables(self, content: Mapping[str, Any], name: str) -> list[tuple[int, Mapping[str, Any]]]:
        tables = content.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problems.append(f"{name} must be written as [[{name}]]")
            return []
        return list(enumerate(tables, 1))

    def _grant(self, place: str, table: Mapping[str, Any]) -> Grant:
        self._known(place, table, _GRANT)
        role = table.get("role")
        if not isinstance(role, str) or role not in ROLES:
            self.problems.append(f"{place}: role must be {', '.join(ROLES)}")
        flags = {}
        for name in ("impersonate", "approve_for_others"):
            flags[name] = table.get(name, False)
            if not isinstance(flags[name], bool):
                self.problems.append(f"{place}: {name} must be true or false")
        return Grant(
            match=self._match(place, table.get("match")),
            role=ROLES.get(str(role), Role.NONE),
            pipelines=self._pipelines(place, table),
            **flags,
        )

    def _pipelines(self, place: str, table: Mapping[str, Any]) -> list[str]:
        pipelines = table.get("pipelines", [ANY])
        if not isinstance(pipelines, list) or not pipelines:
            self.problems.append(f"{place}: pipelines must be a list of names, or absent for all")
            return []
        patterns = [self._pattern(f"{place}: pipelines", one).lower() for one in pipelines]
        for pattern in patterns:
            if not _NAMES.fullmatch(pattern):
                self.problems.append(f"{place}: pipelines: {pattern!r} can be no pipeline's name")
        return [] if ANY in patterns else patterns

    def _match(self, place: str, match: object) -> Match:
        if not isinstance(match, dict) or not match:
            self.problems.append(
                f'{place}: match must say whom it is for, like match = {{ id = "token:ci" }}'
            )
            return Match()
        self._known(f"{place}: match", match, _MATCH)
        issuer = match.get("issuer", "")
        # One that is empty, as templates leave it, would match everybody.
        if "issuer" in match and issuer not in self._issuers:
            known = ", ".join(self._issuers) or "none"
            self.problems.append(f"{place}: match: there is no issuer {issuer!r}; there are: {known}")
        if not issuer and ("group" in match or "claim" in match):
            self.problems.append(f"{place}: match: group and claim need issuer: others may have the same")
        claim = match.get("claim", {})
        if not isinstance(claim, dict) or ("claim" in match and not claim):
            self.problems.append(f'{place}: match: claim must be a table, like {{ repository_id = "42" }}')
            claim = {}
        return Match(
            issuer=str(issuer),
            claim={
                name: self._pattern(f"{place}: match: claim {name}", text) for name, text in claim.items()
            },
            **{
                name: self._pattern(f"{place}: match: {name}", match[name])
                for name in ("id", "group")
                if name in match
            },
        )

    def _pattern(self, place: str, text: object) -> str:
        if not isinstance(text, str) or not text:
            self.problems.append(f"{place}: must be a text, not {text!r}")
            return ""
        if ANY in text[:-1]:
            self.problems.append(f"{place}: {text!r} may have one {ANY}, at its end")
        return text

    def _known(self, place: str, table: Mapping[str, Any], names: Collection[str]) -> None:
        for name in table:
            if name not in names:
                self.problems.append(f"{place}: there is no {name!r}; there are: {', '.join(names)}")
