"""Triggers. Redis refuses the hopeless ones. Of the rest, those that may start something ask Postgres in
turn, one at a time for each pipeline."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple
from uuid import UUID

from deployment_pipeline import deadline
from deployment_pipeline.engine import outcomes
from deployment_pipeline.engine.finishing import Changes
from deployment_pipeline.engine.turns import Attempt, Turns
from deployment_pipeline.fields import Rules
from deployment_pipeline.guard.guard import Guard, Lease, Passage
from deployment_pipeline.ids import deployment_id_for, request_key
from deployment_pipeline.model import Change, Deployment, Judged
from deployment_pipeline.postgres.store import Store
from deployment_pipeline.refusals import OutcomeUnknown, Overloaded, PipelineBusy, Refusal, RequestIdReused
from deployment_pipeline.states import Status

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
        self._turns: Turns[Change[Deployment] | None] = Turns()

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
        passage = await self._gate(asked)
        if passage.refused_by and asked.hopeless_if_busy:
            raise _busy(pipeline, passage.refused_by)
        if not passage.refused_by and (change := await self._in_turn(asked, passage)):
            return change
        # A repeat, or hopeless: nothing to race for, so it waits for nobody.
        return await self._changes.finish(self._judge(asked))

    async def _gate(self, asked: _Trigger) -> Passage:
        """Who does not mind a busy pipeline has nothing to ask."""
        if asked.on_busy != "REJECT":
            return Passage(None)
        return await self._guard.gate(asked.pipeline, asked.id)

    async def _in_turn(self, asked: _Trigger, passage: Passage) -> Change[Deployment] | None:
        """None: Redis knows by now who is active."""
        try:
            return await self._turns.take(
                asked.pipeline,
                partial(self._attempt, asked, passage),
                shares=asked.hopeless_if_busy,
                patience_seconds=deadline.remaining(),
            )
        except TimeoutError as error:
            raise Overloaded from error

    async def _attempt(
        self, asked: _Trigger, passage: Passage, this: Attempt[Change[Deployment] | None]
    ) -> None:
        if this.waited:  # what Redis said may be long ago
            passage = await self._gate(asked)
        if passage.refused_by:
            busy = _busy(asked.pipeline, passage.refused_by)
            if asked.hopeless_if_busy:
                this.fail(busy, shared=True)
            else:
                this.succeed(None, busy)
            return
        active: Deployment | None = None
        try:
            judged = await self._judged(asked)
            found = judged.deployment
            active = found if found and found.status is Status.IN_PROGRESS else None
            this.succeed(_made(asked, judged), outcomes.busy(active) if active else None)
        except Refusal as refusal:
            about_us = isinstance(refusal, RequestIdReused | OutcomeUnknown)
            as_theirs = asked.on_busy == "REJECT" and not about_us and deadline.remaining() > 0
            this.fail(refusal, shared=as_theirs)
        if active:
            await self._guard.fill(passage, active, asked.id)
        elif passage.t0_ms is not None:
            await self._guard.release(asked.pipeline, asked.id)

    async def _judge(self, asked: _Trigger) -> Change[Deployment]:
        return _made(asked, await self._judged(asked))

    async def _judged(self, asked: _Trigger) -> Judged:
        id, pipeline, version, on_busy, labels, reason, request_id = asked
        key = request_key(request_id, "trigger", pipeline, version, on_busy, labels, reason)
        return await self._store.trigger(id, pipeline, version, on_busy, labels, reason, key)


def _made(asked: _Trigger, judged: Judged) -> Change[Deployment]:
    refusal = outcomes.refusal_of_pipeline_change(judged, asked.pipeline, asked.request_id)
    return outcomes.deployment_change(judged, refusal)


def _busy(pipeline: str, lease: Lease) -> PipelineBusy:
    return PipelineBusy(pipeline, lease.id, lease.version, lease.stage, lease.since)
