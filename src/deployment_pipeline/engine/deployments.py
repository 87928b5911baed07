"""Changes of deployments: trigger, advance, roll back, cancel."""

from collections.abc import Coroutine, Mapping
from typing import Any
from uuid import UUID

from deployment_pipeline import deadline, outcomes
from deployment_pipeline.engine.changes import Changes
from deployment_pipeline.errors import (
    OutcomeUnknown,
    Overloaded,
    PipelineBusy,
    Refusal,
    RequestIdReused,
    RetryWithoutToken,
)
from deployment_pipeline.guard import Guard, Passage
from deployment_pipeline.identity import deployment_id_for, redeployment_id_for, request_key
from deployment_pipeline.model import Change, Deployment, Judged
from deployment_pipeline.rules import Rules
from deployment_pipeline.states import FINAL, Status
from deployment_pipeline.store import Store
from deployment_pipeline.turns import Attempt, Turns

ON_BUSY = ("REJECT", "QUEUE", "SUPERSEDE")


class Deployments:
    def __init__(self, store: Store, guard: Guard, changes: Changes) -> None:
        self._store = store
        self._guard = guard
        self._changes = changes
        self._triggers: Turns[Change[Deployment]] = Turns()

    async def close(self) -> None:
        """Wait for the triggers under way."""
        await self._triggers.drain()

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
        # Who may wait, or may be repeating itself, must ask Postgres in any case.
        hopeless_if_busy = on_busy == "REJECT" and not request_id

        async def attempt(this: Attempt[Change[Deployment]]) -> None:
            id = deployment_id_for(pipeline, request_id)
            passage = await self._guard.gate(pipeline, id) if on_busy == "REJECT" else Passage(None)
            if passage.refused_by and hopeless_if_busy:
                lease = passage.refused_by
                busy = PipelineBusy(pipeline, lease.id, lease.version, lease.stage, lease.since)
                this.fail(busy, shared=True)
                return
            if passage.refused_by:
                # A repeat, or hopeless: nothing to race for, so the next one need not wait for the answer.
                self._changes.begin(judge(this, id, Passage(None)))
            else:
                await judge(this, id, passage)

        async def judge(this: Attempt[Change[Deployment]], id: UUID, passage: Passage) -> None:
            key = request_key(request_id, "trigger", pipeline, version, on_busy, labels, reason)
            active: Deployment | None = None
            try:
                judged = await self._store.trigger(id, pipeline, version, on_busy, labels, reason, key)
                found = judged.deployment
                active = found if found and found.status is Status.IN_PROGRESS else None
                made = _deployment(judged, outcomes.refusal_of_pipeline_change(judged, pipeline, request_id))
                this.succeed(made, outcomes.busy(active) if active else None)
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

        try:
            return await self._triggers.take(
                pipeline,
                attempt,
                shares=hopeless_if_busy,
                patience_seconds=deadline.remaining(),
            )
        except TimeoutError as error:
            raise Overloaded from error

    async def advance(
        self,
        deployment_id: str,
        expected_stage: str,
        reason: str,
        request_id: str,
        *,
        marked_retry: bool,
    ) -> Change[Deployment]:
        """marked_retry: a proxy or client library says that it sent this call before."""
        rules = Rules()
        id = rules.uuid("deployment_id", deployment_id)
        if expected_stage:
            rules.name("expected_stage", expected_stage)
        rules.text("reason", reason)
        rules.request_id(request_id)
        rules.check()
        if marked_retry and not expected_stage and not request_id:
            raise RetryWithoutToken(deployment_id)
        key = request_key(request_id, "advance", id, expected_stage, reason)
        change = self._store.advance(id, expected_stage or None, reason, key)
        return await self._changes.finish(self._change(change, id, request_id, expected_stage))

    async def rollback(
        self,
        deployment_id: str,
        reason: str,
        request_id: str,
        *,
        redeploy_last_completed: bool | None,
        redeploy_version: str | None,
    ) -> Change[Deployment]:
        """At most one of the redeploy arguments is given."""
        rules = Rules()
        id = rules.uuid("deployment_id", deployment_id)
        if redeploy_last_completed is False:
            rules.broken("redeploy_last_completed", "must be true, or left out")
        if redeploy_version is not None:
            rules.version("redeploy_version", redeploy_version)
        rules.text("reason", reason)
        rules.request_id(request_id)
        rules.check()
        redeploys = redeploy_last_completed or redeploy_version is not None
        key = request_key(request_id, "rollback", id, redeploy_last_completed, redeploy_version, reason)
        change = self._store.rollback(
            id, redeployment_id_for(id) if redeploys else None, redeploy_version, reason, key
        )
        return await self._changes.finish(self._change(change, id, request_id))

    async def cancel(self, deployment_id: str, reason: str, request_id: str) -> Change[Deployment]:
        rules = Rules()
        id = rules.uuid("deployment_id", deployment_id)
        rules.text("reason", reason)
        rules.request_id(request_id)
        rules.check()
        key = request_key(request_id, "cancel", id, reason)
        change = self._store.cancel(id, reason, key)
        return await self._changes.finish(self._change(change, id, request_id))

    async def _change(
        self,
        change: Coroutine[Any, Any, Judged],
        id: UUID,
        request_id: str,
        expected_stage: str = "",
    ) -> Change[Deployment]:
        """Carry out a change of an existing deployment, and tell the guard if it freed the slot."""
        judged = await change
        made = _deployment(
            judged, outcomes.refusal_of_deployment_change(judged, id, request_id, expected_stage)
        )
        if made.snapshot.status in FINAL and made.snapshot.started_at:
            await self._guard.end(made.snapshot, judged.started)
        return made


def _deployment(judged: Judged, refusal: Refusal | None) -> Change[Deployment]:
    if refusal or judged.deployment is None:
        raise refusal or AssertionError(f"{judged.outcome} without a deployment")
    return Change(judged.deployment, judged.outcome == "REPLAYED")
