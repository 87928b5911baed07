"""What a caller asks to change: one frozen value for each call that changes something.

The servicer makes it from the request, field by field and by name; the engine checks it and hands it to the
store, which binds each field to the SQL function's argument of the same name. So a field travels by its name,
and its rule stands here, in its annotation. A field that has its default needs no check.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, get_type_hints
from uuid import UUID

from deployment_pipeline.fields import DEFAULT_MAX_PENDING, Rules
from deployment_pipeline.model import OnBusy

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    # The fields that make a repeat harmless; each alone does.
    tokens: ClassVar[Sequence[str]] = ("request_id",)
    # Whether what is known to be a repeat may go on without one.
    may_repeat_blindly: ClassVar[bool] = False

    request_id: Annotated[str, Rules.request_id] = ""

    @property
    def subject(self) -> str:
        """What it changes, for people."""
        raise NotImplementedError

    @property
    def has_token(self) -> bool:
        return any(getattr(self, token) for token in self.tokens)

    @property
    def level(self) -> int:
        """`release.LEVEL` of the first code that can read, and would refuse, what this command stores."""
        return 1

    def check(self) -> None:
        """Raises InvalidFields with every field that breaks its rule."""
        kind: Any = type(self)
        rules = Rules()
        for name, rule, default in _rules(kind):
            value = getattr(self, name)
            if value != default:
                rule(rules, name, value)
        rules.check()

    def digest(self) -> bytes:
        """What tells a repeat of this request from another request with its request_id: the call's name and
        the fields that do not have their default, by name. It is stored, so the same request must keep it
        through all releases: a new field needs a default that means what its absence meant before."""
        kind: Any = type(self)
        asked = {
            name: value
            for name, _, default in _rules(kind)
            if name != "request_id" and (value := getattr(self, name)) != default
        }
        text = json.dumps([kind.__name__, asked], sort_keys=True, default=_json)
        return blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineCommand(Command):
    name: Annotated[str, Rules.name]

    @property
    def pipeline(self) -> str:
        return self.name

    @property
    def subject(self) -> str:
        return f"pipeline {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentCommand(Command):
    deployment_id: Annotated[UUID, Rules.uuid]
    reason: Annotated[str, Rules.text] = ""

    @property
    def subject(self) -> str:
        return f"deployment {self.deployment_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePipeline(PipelineCommand):
    may_repeat_blindly = True  # what exists as it was asked for is the answer

    stages: Annotated[Sequence[str], Rules.stages]
    description: Annotated[str, Rules.text] = ""
    labels: Annotated[Mapping[str, str], Rules.labels] = field(default_factory=dict)
    max_pending: Annotated[int, Rules.max_pending] = DEFAULT_MAX_PENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePipeline(PipelineCommand):
    """Only fields that the mask names are set."""

    tokens = ("request_id", "expected_revision")

    update_mask: Annotated[Sequence[str], Rules.update_mask]
    stages: Annotated[Sequence[str] | None, Rules.stages] = None
    description: Annotated[str | None, Rules.text] = None
    labels: Annotated[Mapping[str, str] | None, Rules.labels] = None
    max_pending: Annotated[int | None, Rules.max_pending] = None
    expected_revision: Annotated[int, Rules.number] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LockPipeline(PipelineCommand):
    """With a lock_no: change the lock that stands."""

    tokens = ("request_id", "lock_no")

    reason: Annotated[str, Rules.required_reason]
    owner: Annotated[str, Rules.owner] = ""
    expires_at: Annotated[datetime | None, Rules.time] = None
    lock_no: Annotated[int, Rules.number] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlockPipeline(PipelineCommand):
    """Without a lock_no: only a lock of this owner's."""

    tokens = ("request_id", "lock_no")

    reason: Annotated[str, Rules.text] = ""
    start_next: bool = False
    lock_no: Annotated[int, Rules.number] = 0
    owner: Annotated[str, Rules.owner] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerDeployment(Command):
    may_repeat_blindly = True  # dp_trigger looks for the first attempt, and starts nothing

    pipeline_name: Annotated[str, Rules.name]
    version: Annotated[str, Rules.version]
    on_busy: Annotated[OnBusy, Rules.on_busy] = OnBusy.REJECT
    labels: Annotated[Mapping[str, str], Rules.labels] = field(default_factory=dict)
    reason: Annotated[str, Rules.text] = ""

    @property
    def pipeline(self) -> str:
        return self.pipeline_name

    @property
    def subject(self) -> str:
        return f"pipeline {self.pipeline_name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvanceStage(DeploymentCommand):
    tokens = ("request_id", "expected_stage")

    expected_stage: Annotated[str, Rules.name] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback(DeploymentCommand):
    """At most one of the redeploy fields is set."""

    redeploy_last_completed: Annotated[bool | None, Rules.true] = None
    redeploy_version: Annotated[str | None, Rules.version] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelDeployment(DeploymentCommand):
    pass


_NO_DEFAULT = object()


@cache
def _rules(command: Any) -> Sequence[tuple[str, Any, object]]:
    """The name, rule and default of each field."""
    hints = get_type_hints(command, include_extras=True)
    found = []
    for described in fields(command):
        [rule] = getattr(hints[described.name], "__metadata__", [_anything])
        default = described.default
        if described.default_factory is not MISSING:
            default = described.default_factory()
        found.append((described.name, rule, _NO_DEFAULT if default is MISSING else default))
    return found


def _anything(rules: Rules, field: str, value: object) -> None:
    """No value of the field's type is wrong."""


def _json(value: object) -> str:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat()
        case UUID():
            return str(value)
        case _:
            raise TypeError(f"the digest has no form for {value!r}")
