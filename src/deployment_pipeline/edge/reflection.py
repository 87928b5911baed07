"""Reflection, so that grpcurl, buf curl and IDEs need no proto file.

grpcio-reflection serves only the v1alpha name. The v1 messages and their numbers are the same, so the same
servicer answers under both, and v1's description is v1alpha's with the other name.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from deployment_pipeline.edge.answers import Context
from deployment_pipeline.edge.streams import Streams

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"

# In this process, and for how long each: tools ask what they want to know, and leave.
MAX_STREAMS = 100
STREAM_SECONDS = 60.0


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]  # grpc_reflection has no types
    def __init__(self, services: tuple[str, ...], streams: Streams) -> None:
        super().__init__(services)
        self._streams = streams

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], context: Context
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        async with self._streams.place(context):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STREAM_SECONDS):
                    async for answer in super().ServerReflectionInfo(requests, context):
                        yield answer


def _describe_v1() -> None:
    described = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(described)
    renamed = text_format.MessageToString(described).replace("v1alpha", "v1")
    v1 = text_format.Parse(renamed, descriptor_pb2.FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(v1.SerializeToString())


def add(server: grpc.aio.Server, *services: str) -> Streams:
    """Serve reflection that describes these services and itself. Returns its streams."""
    _describe_v1()
    streams = Streams(MAX_STREAMS)
    servicer = _Reflection((*services, V1, V1ALPHA), streams)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    v1 = grpc.method_handlers_generic_handler(V1, {"ServerReflectionInfo": handler})
    server.add_generic_rpc_handlers([v1])
    return streams
