"""The servicer: decode, call the engine, encode."""

from typing import Any, TypeAlias, TypeVar

import grpc

from deployment_pipeline.edge import convert
from deployment_pipeline.engine import Engine
from deployment_pipeline.model import Change
from dp.v1 import deployment_pipeline_pb2 as pb
from dp.v1 import deployment_pipeline_pb2_grpc as pb_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")

REPLAYED = (("dp-replayed", "true"),)


class DeploymentPipelineService(pb_grpc.DeploymentPipelineServicer):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def CreatePipeline(self, request: pb.CreatePipelineRequest, context: Context) -> pb.Pipeline:
        change = await self._engine.pipelines.create(
            request.name,
            list(request.stages),
            request.description,
            dict(request.labels),
            request.max_pending if request.HasField("max_pending") else None,
            request.request_id,
        )
        return convert.pipeline(_snapshot(change, context))

    async def GetPipeline(self, request: pb.GetPipelineRequest, context: Context) -> pb.Pipeline:
        return convert.pipeline(await self._engine.records.pipeline(request.name))

    async def ListPipelines(
        self, request: pb.ListPipelinesRequest, context: Context
    ) -> pb.ListPipelinesResponse:
        page = await self._engine.records.pipelines(request.page_size, request.page_token)
        return convert.pipelines(page)

    async def UpdatePipeline(self, request: pb.UpdatePipelineRequest, context: Context) -> pb.Pipeline:
        change = await self._engine.pipelines.update(
            request.name,
            *convert.pipeline_changes(request),
            request.expected_revision,
            request.request_id,
        )
        return convert.pipeline(_snapshot(change, context))

    async def TriggerDeployment(
        self, request: pb.TriggerDeploymentRequest, context: Context
    ) -> pb.DeploymentStatus:
        change = await self._engine.triggers.trigger(
            request.pipeline_name,
            request.version,
            convert.on_busy(request),
            dict(request.labels),
            request.reason,
            request.request_id,
        )
        return convert.deployment(_snapshot(change, context))

    async def GetDeploymentStatus(
        self, request: pb.GetDeploymentStatusRequest, context: Context
    ) -> pb.DeploymentStatus:
        return convert.deployment(await self._engine.records.deployment(request.deployment_id))

    async def AdvanceStage(self, request: pb.AdvanceStageRequest, context: Context) -> pb.DeploymentStatus:
        change = await self._engine.deployments.advance(
            request.deployment_id,
            request.expected_stage,
            request.reason,
            request.request_id,
            marked_retry=_marked_retry(context),
        )
        return convert.deployment(_snapshot(change, context))

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.DeploymentStatus:
        last_completed, version = request.redeploy_last_completed, request.redeploy_version
        redeploy = request.WhichOneof("redeploy")
        change = await self._engine.deployments.rollback(
            request.deployment_id,
            request.reason,
            request.request_id,
            redeploy_last_completed=last_completed if redeploy == "redeploy_last_completed" else None,
            redeploy_version=version if redeploy == "redeploy_version" else None,
        )
        return convert.deployment(_snapshot(change, context))

    async def CancelDeployment(
        self, request: pb.CancelDeploymentRequest, context: Context
    ) -> pb.DeploymentStatus:
        change = await self._engine.deployments.cancel(
            request.deployment_id, request.reason, request.request_id
        )
        return convert.deployment(_snapshot(change, context))

    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        where = convert.history_filter(request)
        page = await self._engine.records.history(
            request.pipeline_name, where, request.limit, request.page_token
        )
        return convert.history(page)

    async def LockPipeline(self, request: pb.LockPipelineRequest, context: Context) -> pb.Pipeline:
        change = await self._engine.pipelines.lock(
            request.name, request.reason, request.owner, convert.expiry(request), request.request_id
        )
        return convert.pipeline(_snapshot(change, context))

    async def UnlockPipeline(
        self, request: pb.UnlockPipelineRequest, context: Context
    ) -> pb.UnlockPipelineResponse:
        change = await self._engine.pipelines.unlock(
            request.name, request.reason, request.start_next, request.request_id
        )
        return convert.unlocked(_snapshot(change, context))

    async def GetPipelineState(
        self, request: pb.GetPipelineStateRequest, context: Context
    ) -> pb.PipelineState:
        return convert.state(await self._engine.records.state(request.name))

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        page = await self._engine.records.events(
            request.pipeline_name, request.deployment_id, request.after_event_no, request.limit
        )
        return convert.events(page)


def _snapshot(change: Change[T], context: Context) -> T:
    if change.replayed:
        context.set_trailing_metadata(REPLAYED)
    return change.snapshot


def _marked_retry(context: Context) -> bool:
    """Whether gRPC's own retries, or Envoy's, sent this call before."""
    for key, value in context.invocation_metadata() or ():
        if key == "grpc-previous-rpc-attempts":
            return True
        if key == "x-envoy-attempt-count" and value != "1":
            return True
    return False
