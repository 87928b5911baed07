"""One method per operation: check the fields, pass the guard, let Postgres judge, tell the guard.

A change that was begun is not cancelled with its caller: it runs to its end, and `close` waits for it.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from deployment_pipeline import deadline, outcomes, page_token
from deployment_pipeline.errors import (
    DeploymentNotFound,
    OutcomeUnknown,
    Overloaded,
    PipelineBusy,
    PipelineNotFound,
    Refusal,
    RequestIdReused,
    RetryWithoutToken,
)
from deployment_pipeline.guard import Guard
from deployment_pipeline.identity import deployment_id_for, request_key
from deployment_pipeline.model import Change, Deployment, HistoryFilter, Pipeline
from deployment_pipeline.rules import DEFAULT_MAX_PENDING, MAX_PENDING, Rules
from deployment_pipeline.states import FINAL, Event, Status
from deployment_pipeline.store import Store
from deployment_pipeline.turns import Attempt, Turns

T = TypeVar("T")

_MAX_SEQ = 2**63 - 1


class Engine:
    """All operations, on a store and a guard that somebody else opens and closes."""

    def __init__(self, store: Store, guard: Guard, page_token_key: bytes) -> None:
        self._store = store
        self._guard = guard
        self._page_token_key = page_token_key
        self._triggers: Turns[Change[Deployment]] = Turns()
        self._changes: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for the changes under way."""
        await self._triggers.drain()
        while self._changes:
            await asyncio.wait(self._changes)

    # Pipelines

    async def create_pipeline(
        self,
        name: str,
        stages: Sequence[str],
        description: str,
        labels: Mapping[str, str],
        max_pending: int | None,
        request_id: str,
    ) -> Change[Pipeline]:
        pending = DEFAULT_MAX_PENDING if max_pending is None else max_pending
        rules = Rules()
        rules.name("name", name)
        rules.stages("stages", stages)
        rules.text("description", description)
        rules.labels("labels", labels)
        rules.whole("max_pending", pending, 0, MAX_PENDING)
        rules.request_id(request_id)
        rules.check()
        key = request_key(request_id, "create", name, stages, description, labels, pending)
        outcome, pipeline = await self._finish(
            self._store.create_pipeline(name, stages, description, labels, pending, key)
        )
        return outcomes.pipeline(outcome, pipeline, name, request_id)

    async def update_pipeline(
        self,
        name: str,
        changes: Mapping[str, Any],
        expected_revision: int,
        request_id: str,
    ) -> Change[Pipeline]:
        """changes: new values for any of stages, description, labels, max_pending."""
        rules = Rules()
        rules.name("name", name)
        if not changes:
            rules.broken("update_mask", "names no field to change, and none is given")
        if "stages" in changes:
            rules.stages("stages", changes["stages"])
        rules.text("description", changes.get("description", ""))
        rules.labels("labels", changes.get("labels", {}))
        rules.whole("max_pending", changes.get("max_pending", 0), 0, MAX_PENDING)
        rules.whole("expected_revision", expected_revision, 0, _MAX_SEQ)
        rules.request_id(request_id)
        rules.check()
        key = request_key(request_id, "update", name, changes, expected_revision)
        outcome, pipeline = await self._finish(
            self._store.update_pipeline(
                name,
                changes.get("stages"),
                changes.get("description"),
                changes.get("labels"),
                changes.get("max_pending"),
                expected_revision or None,
                key,
            )
        )
        return outcomes.pipeline(outcome, pipeline, name, request_id, expected_revision)

    async def get_pipeline(self, name: str) -> Pipeline:
        rules = Rules()
        rules.name("name", name)
        rules.check()
        pipeline = await self._store.get_pipeline(name)
        if pipeline is None:
            raise PipelineNotFound(name)
        return pipeline

    async def list_pipelines(self, page_size: int, token: str) -> tuple[list[Pipeline], str]:
        """A page in the order of names, and the token of the next one."""
        rules = Rules()
        size = rules.page_size("page_size", page_size)
        page = page_token.Page(self._page_token_key, "pipelines")
        after = page.load(rules, token) or ""
        rules.check()
        pipelines = await self._store.list_pipelines(after, size + 1)
        more = len(pipelines) > size
        return pipelines[:size], page.dump(pipelines[size - 1].name) if more else ""

    # Deployments

    async def trigger(
        self, pipeline: str, version: str, labels: Mapping[str, str], reason: str, request_id: str
    ) -> Change[Deployment]:
        rules = Rules()
        rules.name("pipeline_name", pipeline)
        rules.version("version", version)
        rules.labels("labels", labels)
        rules.text("reason", reason)
        rules.request_id(request_id)
        rules.check()
        key = request_key(request_id, "trigger", pipeline, version, labels, reason)
        id = deployment_id_for(pipeline, request_id)

        async def attempt(this: Attempt[Change[Deployment]]) -> None:
            passage = await self._guard.gate(pipeline, id)
            # A call with a request_id asks Postgres all the same: it may be a repeat.
            if passage.refused_by and not request_id:
                lease = passage.refused_by
                busy = PipelineBusy(pipeline, lease.id, lease.version, lease.stage, lease.since)
                this.fail(busy, shared=True)
                return
            active: Deployment | None = None
            try:
                outcome, found = await self._store.trigger(id, pipeline, version, labels, reason, key)
                active = found if found and found.status is Status.IN_PROGRESS else None
                made = outcomes.trigger(outcome, found, pipeline, request_id)
                this.succeed(made, outcomes.busy(active) if active else None)
            except Refusal as refusal:
                about_us = isinstance(refusal, RequestIdReused | OutcomeUnknown)
                this.fail(refusal, shared=not about_us and deadline.remaining() > 0)
            if active:
                await self._guard.fill(passage, active, id)
            else:
                await self._guard.release(pipeline, id)

        try:
            return await self._triggers.take(
                pipeline,
                attempt,
                shares=not request_id,
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
        return await self._finish(self._change(change, id, request_id, expected_stage))

    async def rollback(self, deployment_id: str, reason: str, request_id: str) -> Change[Deployment]:
        return await self._end_deployment(Event.ROLLBACK, deployment_id, reason, request_id)

    async def cancel(self, deployment_id: str, reason: str, request_id: str) -> Change[Deployment]:
        return await self._end_deployment(Event.CANCEL, deployment_id, reason, request_id)

    async def _end_deployment(
        self, event: Event, deployment_id: str, reason: str, request_id: str
    ) -> Change[Deployment]:
        rules = Rules()
        id = rules.uuid("deployment_id", deployment_id)
        rules.text("reason", reason)
        rules.request_id(request_id)
        rules.check()
        key = request_key(request_id, event, id, reason)
        change = self._store.end(id, event, reason, key)
        return await self._finish(self._change(change, id, request_id))

    async def get_deployment(self, deployment_id: str) -> Deployment:
        rules = Rules()
        id = rules.uuid("deployment_id", deployment_id)
        rules.check()
        deployment = await self._store.get_deployment(id)
        if deployment is None:
            raise DeploymentNotFound(id)
        return deployment

    async def history(
        self, pipeline: str, where: HistoryFilter, limit: int, token: str
    ) -> tuple[list[Deployment], str]:
        """A page, newest first, and the token of the next one."""
        rules = Rules()
        rules.name("pipeline_name", pipeline)
        size = rules.page_size("limit", limit)
        for field in ("reached_stage", "completed_stage"):
            if stage := getattr(where, field):
                rules.name(field, stage)
        page = page_token.Page(self._page_token_key, "history", pipeline, where)
        before = page.load(rules, token)
        rules.check()
        found = await self._store.history(pipeline, where, int(before) if before else _MAX_SEQ, size + 1)
        if found is None:
            raise PipelineNotFound(pipeline)
        more = len(found) > size
        return found[:size], page.dump(str(found[size - 1].seq)) if more else ""

    # What changes have in common

    async def _finish(self, change: Coroutine[Any, Any, T]) -> T:
        """Run a change to its end even if the caller leaves."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _change(
        self,
        change: Coroutine[Any, Any, tuple[str, Deployment | None]],
        id: UUID,
        request_id: str,
        expected_stage: str = "",
    ) -> Change[Deployment]:
        """Carry out a change of an existing deployment, and tell the guard if it freed the slot."""
        outcome, found = await change
        made = outcomes.deployment(outcome, found, id, request_id, expected_stage)
        if made.snapshot.status in FINAL and made.snapshot.started_at:
            await self._guard.end(made.snapshot)
        return made
