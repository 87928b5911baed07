"""Changes of existing deployments: advance, roll back, cancel."""

from uuid import UUID

from deployment_pipeline.commands import AdvanceStage, CancelDeployment, DeploymentCommand, Rollback
from deployment_pipeline.engine import outcomes
from deployment_pipeline.engine.admission import Admission
from deployment_pipeline.engine.finishing import Finishing
from deployment_pipeline.guard.guard import Guard
from deployment_pipeline.ids import redeployment_id
from deployment_pipeline.model import Deployment, Snapshot
from deployment_pipeline.postgres.changes import Changes
from deployment_pipeline.states import FINAL


class Deployments:
    def __init__(self, admission: Admission, changes: Changes, guard: Guard, finishing: Finishing) -> None:
        self._admission = admission
        self._changes = changes
        self._guard = guard
        self._finishing = finishing

    async def advance(self, asked: AdvanceStage) -> Snapshot[Deployment]:
        self._admission.check(asked)
        return await self._finishing.finish(self._change(asked))

    async def rollback(self, asked: Rollback) -> Snapshot[Deployment]:
        self._admission.check(asked)
        redeploy_id = redeployment_id(asked.deployment_id)
        return await self._finishing.finish(self._change(asked, redeploy_id=redeploy_id))

    async def cancel(self, asked: CancelDeployment) -> Snapshot[Deployment]:
        self._admission.check(asked)
        return await self._finishing.finish(self._change(asked))

    async def _change(self, asked: DeploymentCommand, **ids: UUID) -> Snapshot[Deployment]:
        """Make it, and tell the guard if it freed the slot."""
        decision = await self._changes.make(asked, **ids)
        made = outcomes.deployment(decision, asked)
        if made.value.status in FINAL and made.value.started_at:
            await self._guard.end(made.value, decision.started)
        return made
