"""Triggers. Redis refuses most of the hopeless ones; Postgres judges the rest, one a pipeline at a time."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple
from uuid import UUID

from deployment_pipeline import deadline, outcomes
from deployment_pipeline.engine.changes import Changes, deployment_change
from deployment_pipeline.errors import OutcomeUnknown, Overloaded, PipelineBusy, Refusal, RequestIdReused
from deployment_pipeline.guard import Guard, Passage
from deployment_pipeline.identity import deployment_id_for, request_key
from deployment_pipeline.model import Change, Deployment
from deployment_pipeline.rules import Rules
from deployment_pipeline.states import Status
from deployment_pipeline.store import Store
from deployment_pipeline.turns import Attempt, Turns

ON_BUSY = ("REJECT", "QUEUE", "SUPERSEDE")


class _Trigger(NamedTuple):
    id: UUID
    pipeline: str
    version: str
    on_busy: str
    labels: Mapping[str, str]
    reason: str
    request_id: str

    @property
    def hopeless_if_busy(self) -> bool:
        """Who may wait, or may be repeating itself, must ask Postgres in any case."""
        return self.on_busy == "REJECT" and not self.request_id


class Triggers:
    def __init__(self, store: Store, guard: Guard, changes: Changes) -> None:
        self._store = store
        self._guard = guard
        self._changes = changes
        self._turns: Turns[Change[Deployment]] = Turns()

    async def close(self) -> None:
        """Wait for those under way."""
        await self._turns.drain()

    async def trigger(
        self,
        pipeline: str,
        version: str,
        on_busy: str,
        labels: Mapping[str, str],
        reason: str,
        request_id: str,
    ) -> Change[Deployment]:
        rules = Rules()
        rules.name("pipeline_name", pipeline)
        rules.version("version", version)
        rules.one_of("on_busy", on_busy, ON_BUSY)
        rules.labels("labels", labels)
        rules.text("reason", reason)
        rules.request_id(request_id)
        rules.check()
        id = deployment_id_for(pipeline, request_id)
        asked = _Trigger(id, pipeline, version, on_busy, labels, reason, request_id)
        # Here and not in turn: who is hopeless waits behind nobody.
        passage = await self._gate(asked)
        try:
            return await self._turns.take(
                pipeline,
                partial(self._attempt, asked, passage),
                shares=asked.hopeless_if_busy,
                patience_seconds=deadline.remaining(),
            )
        except TimeoutError as error:
            raise Overloaded from error

    async def _gate(self, asked: _Trigger) -> Passage:
        """Raises PipelineBusy if nothing but that can come of it."""
        if asked.on_busy != "REJECT":
            return Passage(None)
        passage = await self._guard.gate(asked.pipeline, asked.id)
        if passage.refused_by and asked.hopeless_if_busy:
            lease = passage.refused_by
            raise PipelineBusy(asked.pipeline, lease.id, lease.version, lease.stage, lease.since)
        return passage

    async def _attempt(self, asked: _Trigger, passage: Passage, this: Attempt[Change[Deployment]]) -> None:
        if this.waited:  # what Redis said may be long ago
            try:
                passage = await self._gate(asked)
            except PipelineBusy as busy:
                this.fail(busy, shared=True)
                return
        if passage.refused_by:
            # A repeat, or hopeless: nothing to race for, so the next one need not wait for the answer.
            self._changes.begin(self._judge(asked, Passage(None), this))
        else:
            await self._judge(asked, passage, this)

    async def _judge(self, asked: _Trigger, passage: Passage, this: Attempt[Change[Deployment]]) -> None:
        id, pipeline, version, on_busy, labels, reason, request_id = asked
        key = request_key(request_id, "trigger", pipeline, version, on_busy, labels, reason)
        active: Deployment | None = None
        try:
            judged = await self._store.trigger(id, pipeline, version, on_busy, labels, reason, key)
            found = judged.deployment
            active = found if found and found.status is Status.IN_PROGRESS else None
            refusal = outcomes.refusal_of_pipeline_change(judged, pipeline, request_id)
            this.succeed(deployment_change(judged, refusal), outcomes.busy(active) if active else None)
        except Refusal as refusal:
            about_us = isinstance(refusal, RequestIdReused | OutcomeUnknown)
            as_theirs = on_busy == "REJECT" and not about_us and deadline.remaining() > 0
            this.fail(refusal, shared=as_theirs)
        except Exception as error:  # a bug: its caller must hear of it, in turn or out of it
            this.fail(error, shared=False)
        if active:
            await self._guard.fill(passage, active, id)
        elif passage.t0_ms is not None:
            await self._guard.release(pipeline, id)
