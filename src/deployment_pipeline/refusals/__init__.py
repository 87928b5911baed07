"""Every refusal that a caller can get: one class each, with the facts, the text and the stable reason.

The text is for a person at a terminal: what was refused, what is in the way, which call would succeed. How a
refusal becomes a gRPC status is the edge's business (`edge.answers`).
"""

from deployment_pipeline.refusals.access import (
    KeysUnavailable,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
)
from deployment_pipeline.refusals.base import (
    Refusal,
    busy_with,
    by,
    until,
)
from deployment_pipeline.refusals.deployments import (
    DeploymentEnded,
    DeploymentNotFound,
    DeploymentNotInProgress,
    StageMismatch,
)
from deployment_pipeline.refusals.pipelines import (
    LockMismatch,
    NoKnownGood,
    PipelineBusy,
    PipelineExists,
    PipelineLocked,
    PipelineNotFound,
    PipelineNotLocked,
    QueueFull,
    RevisionMismatch,
)
from deployment_pipeline.refusals.requests import (
    InvalidFields,
    RequestIdReused,
    RetryWithoutToken,
    TokenRequired,
    Violation,
)
from deployment_pipeline.refusals.service import (
    OutcomeUnknown,
    Overloaded,
    ShuttingDown,
    StoreUnavailable,
    UpgradeNotFinished,
)

__all__ = [
    "DeploymentEnded",
    "DeploymentNotFound",
    "DeploymentNotInProgress",
    "InvalidFields",
    "KeysUnavailable",
    "LockMismatch",
    "NoKnownGood",
    "OutcomeUnknown",
    "Overloaded",
    "PermissionDenied",
    "PipelineBusy",
    "PipelineExists",
    "PipelineLocked",
    "PipelineNotFound",
    "PipelineNotLocked",
    "QueueFull",
    "RateLimited",
    "Refusal",
    "RequestIdReused",
    "RetryWithoutToken",
    "RevisionMismatch",
    "ShuttingDown",
    "StageMismatch",
    "StoreUnavailable",
    "TokenRequired",
    "Unauthenticated",
    "UpgradeNotFinished",
    "Violation",
    "busy_with",
    "by",
    "until",
]
