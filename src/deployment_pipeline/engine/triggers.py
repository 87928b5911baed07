"""Triggers. Redis refuses the hopeless ones. Of the rest, those that may start something ask Postgres in
turn, one at a time for each pipeline."""

from functools import partial
from typing import NamedTuple
from uuid import UUID

from deployment_pipeline import call
from deployment_pipeline.commands import TriggerDeployment
from deployment_pipeline.engine import outcomes
from deployment_pipeline.engine.admission import Admission
from deployment_pipeline.engine.finishing import Finishing
from deployment_pipeline.engine.turns import Attempt, Turns
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.guard.lease import Lease, Passage
from deployment_pipeline.ids import deployment_id
from deployment_pipeline.model import Decision, Deployment, OnBusy, Snapshot
from deployment_pipeline.postgres.changes import Changes
from deployment_pipeline.refusals import (
    OutcomeUnknown,
    Overloaded,
    PipelineBusy,
    Refusal,
    RequestIdReused,
    RetryWithoutToken,
)
from deployment_pipeline.states import Status

# For how long a mesh's identity tells a repeat (dp_trigger), and as much as Redis's clock and Postgres's may
# differ.
ATTEMPTS_MS = 60_000 + 10_000


class _Trigger(NamedTuple):
    """A command with the id of the deployment that it makes."""

    asked: TriggerDeployment
    id: UUID

    @property
    def pipeline(self) -> str:
        return self.asked.pipeline_name

    @property
    def takes_refusals(self) -> bool:
        """What may wait does not mind a busy pipeline."""
        return self.asked.on_busy is OnBusy.REJECT

    @property
    def shares(self) -> bool:
        """Others' refusals hold for it too. What may be a repeat must ask Postgres for its own answer."""
        return self.takes_refusals and not self.asked.request_id and not call.attempt().id

    def is_refused_by(self, passage: Passage) -> bool:
        """Whether Redis's refusal is final for it. What has been active for longer than a mesh's identity
        counts was not started by an earlier attempt."""
        lease, now_ms = passage.refused_by, passage.t0_ms
        if lease is None or now_ms is None:
            return False
        if self.shares:
            return True
        return not self.asked.request_id and now_ms - lease.since.timestamp() * 1000 > ATTEMPTS_MS


class Triggers:
    def __init__(self, admission: Admission, changes: Changes, guard: Guard, finishing: Finishing) -> None:
        self._admission = admission
        self._changes = changes
        self._guard = guard
        self._finishing = finishing
        self._turns: Turns[Snapshot[Deployment] | None] = Turns()

    async def close(self) -> None:
        """Wait for those under way."""
        await self._turns.drain()

    async def trigger(self, asked: TriggerDeployment) -> Snapshot[Deployment]:
        self._admission.check(asked)
        trigger = _Trigger(asked, deployment_id(asked.pipeline_name, asked.request_id))
        passage = await self._gate(trigger)
        if passage.refused_by and trigger.is_refused_by(passage):
            raise _busy(trigger.pipeline, passage.refused_by)
        if not passage.refused_by and (made := await self._in_turn(trigger, passage)):
            return made
        # A repeat, or hopeless: it races for nothing, so it waits for nobody.
        return await self._finishing.finish(self._make(trigger))

    async def _gate(self, trigger: _Trigger) -> Passage:
        if not trigger.takes_refusals:
            return Passage(None)
        return await self._guard.gate(trigger.pipeline, trigger.id)

    async def _in_turn(self, trigger: _Trigger, passage: Passage) -> Snapshot[Deployment] | None:
        """None: Redis has learned meanwhile which deployment is active."""
        try:
            return await self._turns.take(
                trigger.pipeline,
                partial(self._attempt, trigger, passage),
                shares=trigger.shares,
                patience_seconds=call.patience(),
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
            if trigger.is_refused_by(passage):
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
            about_us = isinstance(refusal, RequestIdReused | RetryWithoutToken | OutcomeUnknown)
            is_theirs = trigger.takes_refusals and not about_us and call.patience() > 0
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
    busy = PipelineBusy(pipeline, lease.id, lease.version, lease.stage, lease.since)
    busy.served_from = "redis"
    return busy
