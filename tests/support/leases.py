"""What the guard's tests have in common: an installation, and a deployment that is active in it."""

import uuid
from datetime import UTC, datetime

from deployment_pipeline.model import Deployment
from deployment_pipeline.states import Status

LEASE_MS = 2000
MAX_BATCH = 64
INSTALLATION = "0a1b2c3d"


def active_deployment(pipeline: str) -> Deployment:
    now = datetime.now(UTC)
    return Deployment(
        id=uuid.uuid4(),
        pipeline_name=pipeline,
        seq=7,
        version="v:1 ü",
        stages=("a", "b"),
        stage_index=0,
        stage_entered_at=(now,),
        status=Status.IN_PROGRESS,
        created_at=now,
        started_at=now,
        completed_at=None,
        triggered_by="",
        via="",
        reason="",
        cause=None,
        cause_message="",
        labels={},
        rollback_of=None,
        redeployed_by=None,
        superseded_by=None,
        waiting=None,
    )


def active_key(deployment: Deployment) -> str:
    return f"dp:active:{{{deployment.pipeline_name}}}:{INSTALLATION}"


def lease_key(deployment: Deployment) -> str:
    return f"dp:lease:{{{deployment.pipeline_name}}}:{INSTALLATION}"
