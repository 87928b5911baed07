"""What changes something: each is one call of one function in sql/functions.

One round trip, and no row lock is ever held while this process is elsewhere. A command's fields are bound to
the function's arguments by name (p_version => …), so the release before can call a function with new ones.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import NoneType
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints
from uuid import UUID

from deployment_pipeline import commands
from deployment_pipeline.commands import Command, DeploymentCommand, PipelineCommand
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
_FRAME = {"request_id": "text", "digest": "bytea"}


class Change:
    """The statement of one kind of command. ids: what it takes beside the command's fields and the frame.
    parts: the columns of its row, beside the outcome."""

    def __init__(
        self,
        function: str,
        command: type[Command],
        parts: Mapping[str, Part],
        *ids: str,
        gathers: bool = False,
        **rows: str,
    ) -> None:
        self.gathers = gathers
        self.ids = ids
        self.fields = [name for name in get_type_hints(command) if name not in _FRAME]
        self._parts = parts
        types = {name: _sql_type(hint) for name, hint in get_type_hints(command).items()}
        types |= dict.fromkeys(ids, "uuid") | _FRAME
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
        "id",
        waiting="(waiting)",
        gathers=True,
    ),
    commands.AdvanceStage: Change("dp_advance", commands.AdvanceStage, _DEPLOYMENT, gathers=True),
    commands.CancelDeployment: Change("dp_cancel", commands.CancelDeployment, _DEPLOYMENT, gathers=True),
    commands.Rollback: Change("dp_rollback", commands.Rollback, _DEPLOYMENT, "redeploy_id", gathers=True),
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
        change = CHANGES[type(asked)]
        values = {
            **{name: getattr(asked, name) for name in change.fields},
            **dict.fromkeys(change.ids),
            **ids,
            "request_id": asked.request_id or own_request_id(),
            "digest": asked.digest() if asked.request_id else None,
        }
        # What ends many deployments at once keeps their rows locked: nobody shall share that.
        is_long = isinstance(asked, commands.TriggerDeployment) and asked.on_busy is OnBusy.SUPERSEDE
        try:
            return change.read(
                await self._statements.change(change.statement, values, alone=is_long or not change.gathers)
            )
        except Unconfirmed as error:
            raise OutcomeUnknown(_subject(asked, ids), asked.request_id) from error


def _subject(asked: Command, ids: Mapping[str, UUID]) -> str:
    match asked:
        case DeploymentCommand():
            return f"deployment {asked.deployment_id}"
        case PipelineCommand():
            return f"pipeline {asked.name}"
        case _:
            return f"deployment {ids['id']}"
