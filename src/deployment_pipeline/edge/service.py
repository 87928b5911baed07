"""The servicer: decode, call the engine, encode."""

from typing import Any, TypeAlias, TypeVar

import grpc

from deployment_pipeline import call, commands
from deployment_pipeline.edge import convert
from deployment_pipeline.edge.server_info import ServerInfo
from deployment_pipeline.engine import Engine
from deployment_pipeline.model import Snapshot
from dp.v1 import deployment_pipeline_pb2 as pb
from dp.v1 import deployment_pipeline_pb2_grpc as pb_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")

REPLAYED = (("dp-replayed", "true"),)


class DeploymentPipelineService(pb_grpc.DeploymentPipelineServicer):
    def __init__(self, engine: Engine, info: ServerInfo) -> None:
        self._engine = engine
        self._info = info

    async def CreatePipeline(self, request: pb.CreatePipelineRequest, context: Context) -> pb.Pipeline:
        asked = convert.command(commands.CreatePipeline, request)
        return convert.pipeline(_value(await self._engine.pipelines.create(asked), context))

    async def GetPipeline(self, request: pb.GetPipelineRequest, context: Context) -> pb.Pipeline:
        return convert.pipeline(await self._engine.reads.pipeline(request.name))

    async def ListPipelines(
        self, request: pb.ListPipelinesRequest, context: Context
    ) -> pb.ListPipelinesResponse:
        return convert.pipelines(await self._engine.reads.pipelines(request.page_size, request.page_token))

    async def UpdatePipeline(self, request: pb.UpdatePipelineRequest, context: Context) -> pb.Pipeline:
        asked = convert.update(request)
        return convert.pipeline(_value(await self._engine.pipelines.update(asked), context))

    async def TriggerDeployment(
        self, request: pb.TriggerDeploymentRequest, context: Context
    ) -> pb.DeploymentStatus:
        asked = convert.command(commands.TriggerDeployment, request)
        return convert.deployment(_value(await self._engine.triggers.trigger(asked), context))

    async def GetDeploymentStatus(
        self, request: pb.GetDeploymentStatusRequest, context: Context
    ) -> pb.DeploymentStatus:
        return convert.deployment(await self._engine.reads.deployment(request.deployment_id))

    async def AdvanceStage(self, request: pb.AdvanceStageRequest, context: Context) -> pb.DeploymentStatus:
        asked = convert.command(commands.AdvanceStage, request)
        return convert.deployment(_value(await self._engine.deployments.advance(asked), context))

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.DeploymentStatus:
        asked = convert.command(commands.Rollback, request)
        return convert.deployment(_value(await self._engine.deployments.rollback(asked), context))

    async def CancelDeployment(
        self, request: pb.CancelDeploymentRequest, context: Context
    ) -> pb.DeploymentStatus:
        asked = convert.command(commands.CancelDeployment, request)
        return convert.deployment(_value(await self._engine.deployments.cancel(asked), context))

    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        page = await self._engine.reads.history(
            request.pipeline_name, convert.history_filter(request), request.limit, request.page_token
        )
        return convert.history(page)

    async def LockPipeline(self, request: pb.LockPipelineRequest, context: Context) -> pb.Pipeline:
        asked = convert.command(commands.LockPipeline, request)
        return convert.pipeline(_value(await self._engine.pipelines.lock(asked), context))

    async def UnlockPipeline(
        self, request: pb.UnlockPipelineRequest, context: Context
    ) -> pb.UnlockPipelineResponse:
        asked = convert.command(commands.UnlockPipeline, request)
        return convert.unlocked(_value(await self._engine.pipelines.unlock(asked), context))

    async def GetPipelineState(
        self, request: pb.GetPipelineStateRequest, context: Context
    ) -> pb.PipelineState:
        return convert.state(await self._engine.reads.state(request.name, request.queue_limit))

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        subject = request.WhichOneof("subject")
        page = await self._engine.reads.events(
            request.pipeline_name if subject == "pipeline_name" else None,
            request.deployment_id if subject == "deployment_id" else None,
            request.after_event_no,
            request.page_size,
            request.page_token,
        )
        return convert.events(page)

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        return self._info.answer(call.caller())


def _value(made: Snapshot[T], context: Context) -> T:
    if made.replayed:
        context.set_trailing_metadata(REPLAYED)
    return made.value
