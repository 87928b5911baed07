"""What can be read: pipelines, deployments, history, events."""

from uuid import UUID

from deployment_pipeline.engine.page_token import PageTokens
from deployment_pipeline.fields import MAX_NUMBER, MAX_PAGE, Rules
from deployment_pipeline.model import Deployment, HistoryFilter, LoggedEvent, Page, Pipeline, PipelineState
from deployment_pipeline.postgres import reads as postgres
from deployment_pipeline.refusals import DeploymentNotFound, PipelineNotFound
from deployment_pipeline.states import STATUSES


class Reads:
    def __init__(self, reads: postgres.Reads, page_token_key: bytes) -> None:
        self._reads = reads
        self._page_token_key = page_token_key

    async def pipeline(self, name: str) -> Pipeline:
        rules = Rules()
        rules.name("name", name)
        rules.check()
        pipeline = await self._reads.pipeline(name)
        if pipeline is None:
            raise PipelineNotFound(name)
        return pipeline

    async def pipelines(self, page_size: int, token: str) -> Page[Pipeline]:
        """In the order of names."""
        rules = Rules()
        size = rules.page_size("page_size", page_size)
        tokens = PageTokens(self._page_token_key, "pipelines")
        after = tokens.load(rules, token) or ""
        rules.check()
        pipelines = await self._reads.pipelines(after, size + 1)
        return Page(pipelines[:size], len(pipelines) > size, lambda last: tokens.dump(last.name))

    async def state(self, name: str) -> PipelineState:
        rules = Rules()
        rules.name("name", name)
        rules.check()
        state = await self._reads.state(name, MAX_PAGE)
        if state is None:
            raise PipelineNotFound(name)
        return state

    async def deployment(self, deployment_id: str) -> Deployment:
        rules = Rules()
        id = rules.uuid("deployment_id", deployment_id)
        rules.check()
        return await self._deployment(id)

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
        found = await self._reads.history(pipeline, where, int(before) if before else MAX_NUMBER, size + 1)
        if found is None:
            raise PipelineNotFound(pipeline)
        return Page(found[:size], len(found) > size, lambda last: tokens.dump(str(last.seq)))

    async def events(self, pipeline: str, deployment_id: str, after: int, limit: int) -> Page[LoggedEvent]:
        """Oldest first; of a pipeline or of a deployment."""
        rules = Rules()
        id = rules.uuid("deployment_id", deployment_id) if deployment_id else None
        if pipeline:
            rules.name("pipeline_name", pipeline)
        if (id is None) == (not pipeline):
            rules.broken("pipeline_name", "give either this or deployment_id")
        rules.whole("after_event_no", after, 0, MAX_NUMBER)
        size = rules.page_size("limit", limit)
        rules.check()
        if id:
            events = await self._reads.deployment_events(id, after, size + 1)
        else:
            events = await self._reads.pipeline_events(pipeline, after, size + 1)
        if not events:  # nothing happened since, or there is no such thing
            await (self._deployment(id) if id else self.pipeline(pipeline))
        return Page(events[:size], len(events) > size, lambda last: str(last.event_no))

    async def _deployment(self, id: UUID) -> Deployment:
        deployment = await self._reads.deployment(id)
        if deployment is None:
            raise DeploymentNotFound(id)
        return deployment
