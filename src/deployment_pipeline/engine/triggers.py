"""Triggers. Redis refuses the hopeless ones. Of the rest, those that may start something ask Postgres in
turn, one at a time for each pipeline."""

from functools import partial
from typing import NamedTuple
from uuid import UUID

from deployment_pipeline import call
from deployment_pipeline.commands import TriggerDeployment
from deployment_pipeline.engine import outcomes
from deployment_pipeline.engine.finishing import Finishing
from deployment_pipeline.engine.turns import Attempt, Turns
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.guard.lease import Lease, Passage
from deployment_pipeline.ids import deployment_id
from deployment_pipeline.model import Decision, Deployment, OnBusy, Snapshot
from deployment_pipeline.postgres.changes import Changes
from deployment_pipeline.refusals import OutcomeUnknown, Overloaded, PipelineBusy, Refusal, RequestIdReused
from deployment_pipeline.states import Status


class _Trigger(NamedTuple):
    """A command with the id of the deployment that it makes."""

    asked: TriggerDeployment
    id: UUID

    @property
    def pipeline(self) -> str:
        return self.asked.pipeline_name

    @property
    def may_be_refused_by_redis(self) -> bool:
        """What may wait, or may be a repeat, must ask Postgres in any case."""
        return self.asked.on_busy is OnBusy.REJECT and not self.asked.request_id


class Triggers:
    def __init__(self, changes: Changes, guard: Guard, finishing: Finishing) -> None:
        self._changes = changes
        self._guard = guard
        self._finishing = finishing
        self._turns: Turns[Snapshot[Deployment] | None] = Turns()

    async def close(self) -> None:
        """Wait for those under way."""
        await self._turns.drain()

    async def trigger(self, asked: TriggerDeployment) -> Snapshot[Deployment]:
        asked.check()
        trigger = _Trigger(asked, deployment_id(asked.pipeline_name, asked.request_id))
        passage = await self._gate(trigger)
        if passage.refused_by and trigger.may_be_refused_by_redis:
            raise _busy(trigger.pipeline, passage.refused_by)
        if not passage.refused_by and (made := await self._in_turn(trigger, passage)):
            return made
        # A repeat, or hopeless: it races for nothing, so it waits for nobody.
        return await self._finishing.finish(self._make(trigger))

    async def _gate(self, trigger: _Trigger) -> Passage:
        """What does not mind a busy pipeline has nothing to ask."""
        if trigger.asked.on_busy is not OnBusy.REJECT:
            return Passage(None)
        return await self._guard.gate(trigger.pipeline, trigger.id)

    async def _in_turn(self, trigger: _Trigger, passage: Passage) -> Snapshot[Deployment] | None:
        """None: Redis has learned meanwhile which deployment is active."""
        try:
            return await self._turns.take(
                trigger.pipeline,
                partial(self._attempt, trigger, passage),
                shares=trigger.may_be_refused_by_redis,
                patience_seconds=call.remaining(),
            )
        except TimeoutError as error:
            raise Overloaded from error

    async def _attempt(
        self, trigger: _Trigger, passage: Passage, this: Attempt[Snapshot[Deployment] | None]
    ) -> None:
        if this.waited:  # what Redis said may be long ago
            passage = await self._gate(trigger)
        if passage.refused_by:
            busy = _busy(trigger.pipeline, passage.refused_by)
            if trigger.may_be_refused_by_redis:
                this.fail(busy, shared=True)
            else:
                this.succeed(None, busy)
            return
        active: Deployment | None = None
        try:
            decision = await self._decision(trigger)
            found = decision.deployment
            active = found if found and found.status is Status.IN_PROGRESS else None
            made = outcomes.deployment(decision, trigger.asked)
            this.succeed(made, outcomes.busy(active) if active else None)
        except Refusal as refusal:
            about_us = isinstance(refusal, RequestIdReused | OutcomeUnknown)
            is_theirs = trigger.asked.on_busy is OnBusy.REJECT and not about_us and call.remaining() > 0
            this.fail(refusal, shared=is_theirs)
        if active:
            await self._guard.fill(passage, active, trigger.id)
        elif passage.t0_ms is not None:
            await self._guard.release(trigger.pipeline, trigger.id)

    async def _make(self, trigger: _Trigger) -> Snapshot[Deployment]:
        return outcomes.deployment(await self._decision(trigger), trigger.asked)

    async def _decision(self, trigger: _Trigger) -> Decision:
        return await self._changes.make(trigger.asked, id=trigger.id)


def _busy(pipeline: str, lease: Lease) -> PipelineBusy:
    return PipelineBusy(pipeline, lease.id, lease.version, lease.stage, lease.since)
