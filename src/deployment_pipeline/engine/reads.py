"""What can be read: pipelines, deployments, history, events."""

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from deployment_pipeline import call
from deployment_pipeline.engine.page_token import PageTokens
from deployment_pipeline.fields import DEFAULT_QUEUE, MAX_NUMBER, Rules
from deployment_pipeline.model import (
    Deployment,
    HistoryFilter,
    LoggedEvent,
    Page,
    Part,
    Pipeline,
    PipelineState,
)
from deployment_pipeline.postgres import reads as postgres
from deployment_pipeline.refusals import DeploymentNotFound, PipelineNotFound
from deployment_pipeline.states import STATUSES

T = TypeVar("T")

# Deployments whose pipeline is known without asking: some 20 MiB.
MAX_REMEMBERED = 100_000


class Reads:
    def __init__(self, reads: postgres.Reads, page_token_key: bytes) -> None:
        self._reads = reads
        self._page_token_key = page_token_key
        self._pipelines: dict[UUID, str] = {}

    async def pipeline(self, name: str) -> Pipeline:
        rules = Rules()
        rules.name("name", name)
        rules.check()
        pipeline = await self._reads.pipeline(name)
        if pipeline is None:
            raise PipelineNotFound(name)
        return pipeline

    async def pipelines(self, page_size: int, token: str) -> Page[Pipeline]:
        """In the order of names. Those that the caller may see."""
        rules = Rules()
        size = rules.page_size("page_size", page_size)
        tokens = PageTokens(self._page_token_key, "pipelines")
        after = tokens.load(rules, token) or ""
        rules.check()
        return _page(
            await self._reads.pipelines(call.caller().sees, after, size), tokens, lambda last: last.name
        )

    async def state(self, name: str, queue_limit: int) -> PipelineState:
        """queue_limit: how many of those that wait to show; 0: DEFAULT_QUEUE."""
        rules = Rules()
        rules.name("name", name)
        most = rules.page_size("queue_limit", queue_limit, DEFAULT_QUEUE)
        rules.check()
        state = await self._reads.state(name, most)
        if state is None:
            raise PipelineNotFound(name)
        return state

    async def deployment(self, deployment_id: str) -> Deployment:
        rules = Rules()
        id = rules.uuid("deployment_id", deployment_id)
        rules.check()
        return await self._deployment(id)

    async def pipeline_of(self, id: UUID) -> str | None:
        """The name of a deployment's pipeline, which never changes; None if there is no such deployment."""
        if known := self._pipelines.get(id):
            return known
        name = await self._reads.pipeline_of(id)
        if name is not None:
            if len(self._pipelines) >= MAX_REMEMBERED:
                del self._pipelines[next(iter(self._pipelines))]
            self._pipelines[id] = name
        return name

    async def history(self, pipeline: str, where: HistoryFilter, limit: int, token: str) -> Page[Deployment]:
        """Newest first."""
        rules = Rules()
        rules.name("pipeline_name", pipeline)
        size = rules.page_size("limit", limit)
        for field in ("reached_stage", "completed_stage"):
            if stage := getattr(where, field):
                rules.name(field, stage)
        rules.listed("statuses", where.statuses, STATUSES)
        tokens = PageTokens(
            self._page_token_key,
            "history",
            pipeline=pipeline,
            statuses=where.statuses,
            reached_stage=where.reached_stage,
            completed_stage=where.completed_stage,
        )
        before = tokens.load(rules, token)
        rules.check()
        part = await self._reads.history(pipeline, where, int(before) if before else MAX_NUMBER, size)
        if part is None:
            raise PipelineNotFound(pipeline)
        return _page(part, tokens, lambda last: last.seq)

    async def events(
        self, pipeline: str | None, deployment_id: str | None, after: int, page_size: int, token: str
    ) -> Page[LoggedEvent]:
        """Oldest first, those after an event_no; of a pipeline or of a deployment."""
        rules = Rules()
        id = UUID(int=0)
        if pipeline is not None:
            rules.name("pipeline_name", pipeline)
        elif deployment_id is not None:
            id = rules.uuid("deployment_id", deployment_id)
        else:
            rules.broken("pipeline_name", "is required, or deployment_id in its place")
        rules.number("after_event_no", after)
        size = rules.page_size("page_size", page_size)
        tokens = PageTokens(
            self._page_token_key, "events", pipeline=pipeline or "", deployment=deployment_id or ""
        )
        position = max(after, int(tokens.load(rules, token) or 0))
        rules.check()
        if pipeline is not None:
            part = await self._reads.pipeline_events(pipeline, position, size)
        else:
            part = await self._reads.deployment_events(id, position, size)
        if not part.items:  # nothing happened since, or there is no such thing
            await (self._deployment(id) if pipeline is None else self.pipeline(pipeline))
        return _page(part, tokens, lambda last: last.event_no)

    async def _deployment(self, id: UUID) -> Deployment:
        deployment = await self._reads.deployment(id)
        if deployment is None:
            raise DeploymentNotFound(id)
        return deployment


def _page(part: Part[T], tokens: PageTokens, position: Callable[[T], str | int]) -> Page[T]:
    return Page(
        part.items,
        "" if part.next is None else tokens.dump(str(part.next)),
        lambda last: tokens.dump(str(position(last))),
    )
