"""What a deployment stands in the way of."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from deployment_pipeline.refusals.base import Refusal, text
from deployment_pipeline.states import Status


@dataclass(eq=False)
class DeploymentNotFound(Refusal):
    reason = "DEPLOYMENT_NOT_FOUND"
    deployment_id: UUID

    def __str__(self) -> str:
        return (
            f"there is no deployment {self.deployment_id};"
            " TriggerDeployment answers with a deployment's id, GetHistory lists a pipeline's"
        )


@dataclass(eq=False)
class DeploymentNotInProgress(Refusal):
    """The deployment is still PENDING, and what was asked for needs it IN_PROGRESS."""

    reason = "DEPLOYMENT_NOT_IN_PROGRESS"
    deployment_id: UUID
    status: Status

    def __str__(self) -> str:
        return (
            f"deployment {self.deployment_id} is {self.status}: it has not started;"
            " wait until it is IN_PROGRESS, or end it with CancelDeployment"
        )


@dataclass(eq=False)
class DeploymentEnded(Refusal):
    """The deployment is COMPLETED, ROLLED_BACK or CANCELLED, and stays so."""

    reason = "DEPLOYMENT_ENDED"
    deployment_id: UUID
    status: Status
    ended_at: datetime

    def __str__(self) -> str:
        return (
            f"deployment {self.deployment_id} is {self.status}: it ended at {text(self.ended_at)};"
            " TriggerDeployment starts another one"
        )


@dataclass(eq=False)
class StageMismatch(Refusal):
    """expected_stage is not where the deployment is: it was advanced meanwhile, or the caller is mistaken."""

    reason = "STAGE_MISMATCH"
    deployment_id: UUID
    expected_stage: str
    current_stage: str

    def __str__(self) -> str:
        return (
            f'deployment {self.deployment_id} is at stage "{self.current_stage}",'
            f' not at "{self.expected_stage}"; nothing was advanced'
        )
