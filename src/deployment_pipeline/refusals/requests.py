"""What is wrong with the request itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from deployment_pipeline.refusals.base import Refusal


@dataclass(frozen=True, slots=True)
class Violation:
    field: str
    problem: str


@dataclass(eq=False)
class InvalidFields(Refusal):
    """One or more fields of the request break their rules; all of them are listed."""

    reason = "INVALID_FIELD"
    violations: Sequence[Violation]

    def facts(self) -> dict[str, str]:
        return {"fields": ",".join(v.field for v in self.violations)}

    def __str__(self) -> str:
        return "; ".join(f"{v.field}: {v.problem}" for v in self.violations)


@dataclass(eq=False)
class RequestIdReused(Refusal):
    """The request_id was used in this pipeline for a request that was not the same."""

    reason = "REQUEST_ID_REUSED"
    request_id: str

    def __str__(self) -> str:
        return (
            f'request_id "{self.request_id}" was already used in this pipeline for another request;'
            " a repeat must be the same in every field; use a new request_id for another change"
        )


@dataclass(eq=False)
class _WithoutToken(Refusal):
    call: str
    subject: str  # "deployment ID" or "pipeline NAME"
    tokens: Sequence[str]  # the fields of which it needs one

    def facts(self) -> dict[str, str]:
        return {**super().facts(), "tokens": ",".join(self.tokens)}


class RetryWithoutToken(_WithoutToken):
    """A proxy or client library sent a change again, and nothing tells a repeat from a new call."""

    reason = "RETRY_WITHOUT_TOKEN"

    def __str__(self) -> str:
        return (
            f"this {self.call} of {self.subject} was sent before, by a proxy or a client library, and has no"
            f" {' or '.join(self.tokens)}: that attempt may have been carried out; this one changed nothing;"
            f" look where things stand, and if the change is still wanted, send it with"
            f" {' or '.join(self.tokens)}"
        )


class TokenRequired(_WithoutToken):
    """The server takes no change without a token (DP_REQUIRE_TOKENS)."""

    reason = "TOKEN_REQUIRED"

    def __str__(self) -> str:
        return (
            f"this server takes no {self.call} without {' or '.join(self.tokens)}, so that a repeat can do no"
            f" harm; send {' or '.join(self.tokens)} with it"
        )
