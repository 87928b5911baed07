"""What all refusals have in common, and how they word things."""

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID


def text(fact: object) -> str:
    if fact is None:
        return ""
    if isinstance(fact, datetime):
        return fact.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(fact)


def by(owner: str, principal: str = "") -> str:
    """owner: what somebody says of himself. principal: who has proven it."""
    known = f" ({principal})" if owner and principal else principal and f" {principal}"
    return f' by "{owner}"{known}' if owner else f" by{known}" if principal else ""


def until(expires_at: datetime | None) -> str:
    return f"until {text(expires_at)}" if expires_at else "with no expiry"


def busy_with(id: UUID, version: str, stage: str, since: datetime) -> str:
    """Which deployment holds a pipeline, where it is and since when."""
    return f'deployment {id} of version "{version}", at stage "{stage}", has held it since {text(since)}'


@dataclass(eq=False)
class Refusal(Exception):
    """Nothing was changed (except, maybe, by `OutcomeUnknown`), and the caller is told why."""

    reason: ClassVar[str]
    # For metrics: "postgres" or "redis" where it may be either.
    served_from = "service"

    def facts(self) -> dict[str, str]:
        """The fields, as text: what tools read."""
        return {f.name: text(getattr(self, f.name)) for f in fields(self)}

    def __str__(self) -> str:
        raise NotImplementedError
