"""The servicer: decode, call the engine, encode."""

from typing import Any, TypeAlias, TypeVar

import grpc

from deployment_pipeline import convert
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
        change = await self._engine.create_pipeline(
            request.name,
            list(request.stages),
            request.description,
            dict(request.labels),
            request.max_pending if request.HasField("max_pending") else None,
            request.request_id,
        )
        return convert.pipeline(_snapshot(change, context))

    async def GetPipeline(self, request: pb.GetPipelineRequest, context: Context) -> pb.Pipeline:
        return convert.pipeline(await self._engine.get_pipeline(request.name))

    async def ListPipelines(
        self, request: pb.ListPipelinesRequest, context: Context
    ) -> pb.ListPipelinesResponse:
        page = await self._engine.list_pipelines(request.page_size, request.page_token)
        return convert.pipelines(*page)

    async def UpdatePipeline(self, request: pb.UpdatePipelineRequest, context: Context) -> pb.Pipeline:
        change = await self._engine.update_pipeline(
            request.name,
            convert.pipeline_changes(request),
            request.expected_revision,
            request.request_id,
        )
        return convert.pipeline(_snapshot(change, context))

    async def TriggerDeployment(
        self, request: pb.TriggerDeploymentRequest, context: Context
    ) -> pb.DeploymentStatus:
        convert.refuse_unserved_trigger(request)
        change = await self._engine.trigger(
            request.pipeline_name,
            request.version,
            dict(request.labels),
            request.reason,
            request.request_id,
        )
        return convert.deployment(_snapshot(change, context))

    async def GetDeploymentStatus(
        self, request: pb.GetDeploymentStatusRequest, context: Context
    ) -> pb.DeploymentStatus:
        return convert.deployment(await self._engine.get_deployment(request.deployment_id))

    async def AdvanceStage(self, request: pb.AdvanceStageRequest, context: Context) -> pb.DeploymentStatus:
        change = await self._engine.advance(
            request.deployment_id,
            request.expected_stage,
            request.reason,
            request.request_id,
            marked_retry=_marked_retry(context),
        )
        return convert.deployment(_snapshot(change, context))

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.DeploymentStatus:
        convert.refuse_unserved_rollback(request)
        change = await self._engine.rollback(request.deployment_id, request.reason, request.request_id)
        return convert.deployment(_snapshot(change, context))

    async def CancelDeployment(
        self, request: pb.CancelDeploymentRequest, context: Context
    ) -> pb.DeploymentStatus:
        change = await self._engine.cancel(request.deployment_id, request.reason, request.request_id)
        return convert.deployment(_snapshot(change, context))

    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        where = convert.history_filter(request)
        page = await self._engine.history(request.pipeline_name, where, request.limit, request.page_token)
        return convert.history(*page)


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
