"""Changes of deployments that are there: advance, roll back, cancel."""

from collections.abc import Coroutine
from typing import Any
from uuid import UUID

from deployment_pipeline.engine import outcomes
from deployment_pipeline.engine.finishing import Changes
from deployment_pipeline.fields import Rules
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.ids import redeployment_id_for, request_key
from deployment_pipeline.model import Change, Deployment, Judged
from deployment_pipeline.postgres.store import Store
from deployment_pipeline.refusals import RetryWithoutToken
from deployment_pipeline.states import FINAL


class Deployments:
    def __init__(self, store: Store, guard: Guard, changes: Changes) -> None:
        self._store = store
        self._guard = guard
        self._changes = changes

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
        made = outcomes.deployment_change(
            judged, outcomes.refusal_of_deployment_change(judged, id, request_id, expected_stage)
        )
        if made.snapshot.status in FINAL and made.snapshot.started_at:
            await self._guard.end(made.snapshot, judged.started)
        return made
