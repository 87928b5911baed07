"""What changes something: each is one call of one function in sql/functions.

One round trip, and no row lock is ever held while this process is elsewhere. A command's fields are bound to
the function's arguments by name (p_version => …), so the release before can call a function with new ones.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from hashlib import blake2b
from types import NoneType
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints
from uuid import UUID, uuid4

from deployment_pipeline import call, commands
from deployment_pipeline.commands import Command
from deployment_pipeline.ids import own_request_id
from deployment_pipeline.model import Decision, OnBusy, Outcome
from deployment_pipeline.postgres.reads import Reads
from deployment_pipeline.postgres.shapes import DEPLOYMENT, PIPELINE, QUEUEABLE, STARTED, Column, Shape
from deployment_pipeline.postgres.statements import Statement, Statements, Unconfirmed
from deployment_pipeline.refusals import OutcomeUnknown, UpgradeNotFinished

_SQL_TYPES: Sequence[tuple[type, str]] = (
    (bool, "boolean"),
    (int, "bigint"),
    (str, "text"),
    (UUID, "uuid"),
    (datetime, "timestamptz"),
    (Mapping, "jsonb"),
    (Sequence, "text[]"),
)
Part: TypeAlias = Shape[Any] | Column[Any]
# What every function takes beside the command's fields.
_FRAME = {"request_id": "text", "digest": "bytea", "actor": "text", "via": "text"}
# What those take beside it whose repeats a mesh can tell; see `_attempt`.
_ATTEMPT = {"attempt_id": "text"}


class Change:
    """The statement of one kind of command. extra: the types of what it takes beside the command's fields and
    the frame. parts: the columns of its row, beside the outcome."""

    def __init__(
        self,
        function: str,
        command: type[Command],
        parts: Mapping[str, Part],
        extra: Mapping[str, str] | None = None,
        *,
        gathers: bool = False,
        **rows: str,
    ) -> None:
        self.gathers = gathers
        self.extra = extra or {}
        self._parts = parts
        hints = get_type_hints(command)
        types = {field.name: _sql_type(hints[field.name]) for field in fields(command)}
        self.fields = [name for name in types if name not in _FRAME]
        types |= {**self.extra, **_FRAME}
        arguments = ", ".join(f"p_{name} => q.{name}" for name in (*types, "wait_ms"))
        columns = [
            part.columns(name if isinstance(part, Column) else f"({name})", **rows)
            for name, part in parts.items()
        ]
        self.statement = Statement(
            f"SELECT outcome, {', '.join(columns)} FROM {function}({arguments})", types, waits=True
        )

    def read(self, row: Sequence[Any]) -> Decision:
        values = iter(row)
        outcome = Outcome(next(values))
        return Decision(outcome, **{name: part.read(values) for name, part in self._parts.items()})


def _sql_type(hint: Any) -> str:
    [hint] = [one for one in get_args(hint) if one is not NoneType] if NoneType in get_args(hint) else [hint]
    return next(sql for known, sql in _SQL_TYPES if issubclass(get_origin(hint) or hint, known))


_PIPELINE: Mapping[str, Part] = {"pipeline": PIPELINE}
_DEPLOYMENT: Mapping[str, Part] = {"deployment": DEPLOYMENT, "started": STARTED}

CHANGES: dict[type[Command], Change] = {
    commands.CreatePipeline: Change("dp_create_pipeline", commands.CreatePipeline, _PIPELINE),
    commands.UpdatePipeline: Change("dp_update_pipeline", commands.UpdatePipeline, _PIPELINE),
    commands.LockPipeline: Change("dp_lock_pipeline", commands.LockPipeline, _PIPELINE),
    commands.UnlockPipeline: Change(
        "dp_unlock_pipeline", commands.UnlockPipeline, {**_PIPELINE, "deployment": DEPLOYMENT}
    ),
    commands.TriggerDeployment: Change(
        "dp_trigger",
        commands.TriggerDeployment,
        {"deployment": QUEUEABLE, "pipeline": PIPELINE},
        {"id": "uuid", **_ATTEMPT, "is_repeat": "boolean"},
        waiting="(waiting)",
        gathers=True,
    ),
    commands.AdvanceStage: Change("dp_advance", commands.AdvanceStage, _DEPLOYMENT, _ATTEMPT, gathers=True),
    commands.CancelDeployment: Change("dp_cancel", commands.CancelDeployment, _DEPLOYMENT, gathers=True),
    commands.Rollback: Change(
        "dp_rollback", commands.Rollback, _DEPLOYMENT, {"redeploy_id": "uuid"}, gathers=True
    ),
}


class Changes:
    def __init__(self, statements: Statements, reads: Reads) -> None:
        self._statements = statements
        self._reads = reads
        self._min_level = 1

    async def make(self, asked: Command, **ids: UUID) -> Decision:
        """ids: `id` of a new deployment; `redeploy_id` of the one that a rollback puts in its place.
        Raises UpgradeNotFinished, OutcomeUnknown, StoreUnavailable or Overloaded."""
        if asked.level > self._min_level:
            self._min_level = await self._reads.min_level()
            if asked.level > self._min_level:
                raise UpgradeNotFinished(asked.level, self._min_level)
        change, caller = CHANGES[type(asked)], call.caller()
        values = {
            **{name: getattr(asked, name) for name in change.fields},
            **_identity(asked),
            "actor": caller.actor,
            "via": caller.via,
            **dict.fromkeys(change.extra),
            **dict(_attempt(asked, change.extra)),
            **ids,
        }
        # What ends many deployments at once keeps their rows locked: nobody shall share that.
        is_long = isinstance(asked, commands.TriggerDeployment) and asked.on_busy is OnBusy.SUPERSEDE
        try:
            return change.read(
                await self._statements.change(change.statement, values, alone=is_long or not change.gathers)
            )
        except Unconfirmed as error:
            subject = f"deployment {ids['id']}" if "id" in ids else asked.subject
            raise OutcomeUnknown(subject, asked.request_id) from error


def _identity(asked: Command) -> dict[str, Any]:
    """What the change is stored under, and what only a repeat of it has. Without a request_id both are this
    call's own, and only the service's own repeat has them."""
    if asked.request_id:
        return {"request_id": asked.request_id, "digest": asked.digest()}
    own = uuid4()
    return {"request_id": own_request_id(str(own)), "digest": own.bytes}


def _attempt(asked: Command, wanted: Container[str]) -> Iterator[tuple[str, Any]]:
    """What it is stored under instead, so that other attempts at the same call find it (empty: nobody says
    what belongs together), and whether it is known to be one. A caller's token says more than both."""
    attempt = call.UNMARKED if asked.has_token else call.attempt()
    if "attempt_id" in wanted:
        yield "attempt_id", attempt.id and own_request_id(f"{attempt.id}-{_digest_by_caller(asked)}")
    if "is_repeat" in wanted:
        yield "is_repeat", attempt.is_repeat


def _digest_by_caller(asked: Command) -> str:
    """Other attempts are the same caller's: an identity from a mesh is no secret."""
    actor = call.caller().actor
    digest = asked.digest()
    if actor:
        digest = blake2b(digest + actor.encode(), digest_size=len(digest)).digest()
    return digest.hex()
