"""Changes of pipelines: their definitions and their locks."""

from deployment_pipeline.commands import (
    CreatePipeline,
    LockPipeline,
    PipelineCommand,
    UnlockPipeline,
    UpdatePipeline,
)
from deployment_pipeline.engine import outcomes
from deployment_pipeline.engine.admission import Admission
from deployment_pipeline.engine.finishing import Finishing
from deployment_pipeline.model import Decision, Deployment, Pipeline, Snapshot
from deployment_pipeline.postgres.changes import Changes


class Pipelines:
    def __init__(self, admission: Admission, changes: Changes, finishing: Finishing) -> None:
        self._admission = admission
        self._changes = changes
        self._finishing = finishing

    async def create(self, asked: CreatePipeline) -> Snapshot[Pipeline]:
        return outcomes.pipeline(await self._change(asked), asked)

    async def update(self, asked: UpdatePipeline) -> Snapshot[Pipeline]:
        return outcomes.pipeline(await self._change(asked), asked)

    async def lock(self, asked: LockPipeline) -> Snapshot[Pipeline]:
        return outcomes.pipeline(await self._change(asked), asked)

    async def unlock(self, asked: UnlockPipeline) -> Snapshot[tuple[Pipeline, Deployment | None]]:
        """With what it started."""
        decision = await self._change(asked)
        made = outcomes.pipeline(decision, asked)
        return Snapshot((made.value, decision.deployment), made.replayed)

    async def _change(self, asked: PipelineCommand) -> Decision:
        self._admission.check(asked)
        return await self._finishing.finish(self._changes.make(asked))
