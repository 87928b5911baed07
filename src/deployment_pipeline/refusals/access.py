"""Who the caller is, and what they may do."""

from collections.abc import Sequence
from dataclasses import dataclass

from deployment_pipeline.refusals.base import Refusal


@dataclass(eq=False)
class Unauthenticated(Refusal):
    """There is no credential, or it proves nothing. Why it does not is in the server's log only."""

    reason = "UNAUTHENTICATED"
    ways: Sequence[str]  # that are open, for people

    def facts(self) -> dict[str, str]:
        return {"ways": "; ".join(self.ways)}

    def __str__(self) -> str:
        return (
            "this server must know who calls, and the call has no credential that it accepts;"
            f" what it accepts: {'; '.join(self.ways)}"
        )


@dataclass(eq=False)
class PermissionDenied(Refusal):
    """The caller's grants do not have the role that the call needs, there."""

    reason = "PERMISSION_DENIED"
    principal: str
    call: str
    role: str  # the one that is missing; empty if a deny keeps the caller out
    pipeline: str  # empty: none in particular

    def __str__(self) -> str:
        who = f'"{self.principal}"' if self.principal else "an anonymous caller"
        where = f' on pipeline "{self.pipeline}"' if self.pipeline else ""
        if not self.role:
            return f"{who} is denied {self.call}, by this server's grants"
        return (
            f"{self.call}{where} needs the role {self.role}, which {who} does not have there;"
            " GetServerInfo shows your grants"
        )


@dataclass(eq=False)
class KeysUnavailable(Refusal):
    """The keys of a token's issuer are not here yet."""

    reason = "KEYS_UNAVAILABLE"
    issuer: str

    def __str__(self) -> str:
        return (
            f'the keys of the issuer "{self.issuer}", which the token is checked with, could not be fetched'
            " yet; nothing was changed, try again in a moment"
        )


@dataclass(eq=False)
class RateLimited(Refusal):
    """More calls than one caller may send."""

    reason = "RATE_LIMITED"
    retry_ms: int

    def __str__(self) -> str:
        return (
            f"you send more calls than this server takes from one caller; nothing was changed,"
            f" try again in {self.retry_ms} ms"
        )
