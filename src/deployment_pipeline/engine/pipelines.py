"""Changes of pipelines: their definitions and their locks."""

from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any

from deployment_pipeline.engine import outcomes
from deployment_pipeline.engine.finishing import Changes
from deployment_pipeline.fields import DEFAULT_MAX_PENDING, MAX_PENDING, Rules
from deployment_pipeline.ids import request_key
from deployment_pipeline.model import Change, Deployment, Judged, Pipeline
from deployment_pipeline.postgres.store import Store
from deployment_pipeline.refusals import PipelineExists

UPDATABLE = ("stages", "description", "labels", "max_pending")
_MAX_REVISION = 2**63 - 1


class Pipelines:
    def __init__(self, store: Store, changes: Changes) -> None:
        self._store = store
        self._changes = changes

    async def create(
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
        change = self._store.create_pipeline(name, stages, description, labels, pending, key)
        judged = await self._changes.finish(change)
        if judged.outcome == "PIPELINE_EXISTS" and judged.pipeline:
            found = judged.pipeline
            same = {
                "stages": found.stages == tuple(stages),
                "description": found.description == description,
                "labels": found.labels == labels,
                "max_pending": found.max_pending == pending,
            }
            raise PipelineExists(name, found.revision, [field for field in same if not same[field]])
        return _pipeline(_checked(judged, name, request_id))

    async def update(
        self,
        name: str,
        changes: Mapping[str, Any],
        unknown: Sequence[str],
        expected_revision: int,
        request_id: str,
    ) -> Change[Pipeline]:
        """changes: new values for any of UPDATABLE. unknown: what else the caller wants to change."""
        rules = Rules()
        rules.name("name", name)
        if unknown:
            rules.broken("update_mask", f"may name {', '.join(UPDATABLE)} or *; not {unknown[0]!r}")
        elif not changes:
            rules.broken("update_mask", "names no field to change, and none is given")
        if "stages" in changes:
            rules.stages("stages", changes["stages"])
        rules.text("description", changes.get("description", ""))
        rules.labels("labels", changes.get("labels", {}))
        rules.whole("max_pending", changes.get("max_pending", 0), 0, MAX_PENDING)
        rules.whole("expected_revision", expected_revision, 0, _MAX_REVISION)
        rules.request_id(request_id)
        rules.check()
        key = request_key(request_id, "update", name, changes, expected_revision)
        change = self._store.update_pipeline(
            name,
            changes.get("stages"),
            changes.get("description"),
            changes.get("labels"),
            changes.get("max_pending"),
            expected_revision or None,
            key,
        )
        return _pipeline(await self._judged(change, name, request_id, expected_revision))

    async def lock(
        self, name: str, reason: str, owner: str, expires_at: datetime | None, request_id: str
    ) -> Change[Pipeline]:
        rules = Rules()
        rules.name("name", name)
        if not reason:
            rules.broken("reason", "is required: it is what the people see whom the lock stops")
        rules.text("reason", reason)
        rules.owner("owner", owner)
        rules.request_id(request_id)
        rules.check()
        key = request_key(request_id, "lock", name, reason, owner, expires_at)
        change = self._store.lock_pipeline(name, reason, owner, expires_at, key)
        return _pipeline(await self._judged(change, name, request_id))

    async def unlock(
        self, name: str, reason: str, start_next: bool, request_id: str
    ) -> Change[tuple[Pipeline, Deployment | None]]:
        """With what it started."""
        rules = Rules()
        rules.name("name", name)
        rules.text("reason", reason)
        rules.request_id(request_id)
        rules.check()
        key = request_key(request_id, "unlock", name, reason, start_next)
        change = self._store.unlock_pipeline(name, reason, start_next, key)
        judged = await self._judged(change, name, request_id)
        made = _pipeline(judged)
        return Change((made.snapshot, judged.deployment), made.replayed)

    async def _judged(
        self,
        change: Coroutine[Any, Any, Judged],
        name: str,
        request_id: str,
        expected_revision: int = 0,
    ) -> Judged:
        return _checked(await self._changes.finish(change), name, request_id, expected_revision)


def _checked(judged: Judged, name: str, request_id: str, expected_revision: int = 0) -> Judged:
    refusal = outcomes.refusal_of_pipeline_change(judged, name, request_id, expected_revision)
    if refusal:
        raise refusal
    return judged


def _pipeline(judged: Judged) -> Change[Pipeline]:
    if judged.pipeline is None:
        raise AssertionError(f"{judged.outcome} without a pipeline")
    return Change(judged.pipeline, judged.outcome == "REPLAYED")
