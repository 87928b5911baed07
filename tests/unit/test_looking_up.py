"""What is asked for before a call is carried out, without stores."""

from uuid import UUID, uuid4

import pytest

from deployment_pipeline.edge.grants import Access, Grant, Match, Role
from deployment_pipeline.edge.rights import Rights
from deployment_pipeline.principal import ANONYMOUS, Principal
from deployment_pipeline.refusals import DeploymentNotFound
from dp.v1 import deployment_pipeline_pb2 as pb


@pytest.mark.parametrize(
    ("grants", "looks"), [([], 0), ([Grant(match=Match(), role=Role.VIEWER, pipelines=["a"])], 1)]
)
async def test_whoever_has_no_role_costs_no_look_at_the_stores(grants: list[Grant], looks: int) -> None:
    asked: list[UUID] = []

    async def pipeline_of(id: UUID) -> str | None:
        asked.append(id)
        return "b"

    rights = Rights(Access(ANONYMOUS, []), None, pipeline_of)
    request = pb.GetDeploymentStatusRequest(deployment_id=str(uuid4()))
    with pytest.raises(DeploymentNotFound):
        await rights.check("GetDeploymentStatus", request, Access(Principal("token:a"), grants))
    assert len(asked) == looks
