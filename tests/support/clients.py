"""Two clients of the contract: one generated from the proto, one that knows only the reflection service.

Both are called alike: `await client.call("TriggerDeployment", pipeline_name="shop", version="1")`. A status
other than OK comes as a `Refused`.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dp.v1 import deployment_pipeline_pb2 as pb
from dp.v1 import deployment_pipeline_pb2_grpc as pb_grpc
from support.stores import ROOT

SERVICE = "dp.v1.DeploymentPipeline"
TIMEOUT_SECONDS = 20
DETAILS = {
    name: getattr(error_details_pb2, name)
    for name in ("ErrorInfo", "BadRequest", "PreconditionFailure", "ResourceInfo", "RetryInfo")
}


@dataclass
class Refused(Exception):
    """A call that ended with another status than OK, and what its details say."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    trailing: dict[str, Any] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        info = self.details["ErrorInfo"]
        assert info.domain == "dp.v1"
        return str(info.reason)

    @property
    def facts(self) -> dict[str, str]:
        return dict(self.details["ErrorInfo"].metadata)

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Refused":
        details: dict[str, Any] = {}
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                assert isinstance(value, bytes)
                status = status_pb2.Status.FromString(value)
                assert (status.code, status.message) == (error.code().value[0], error.details())
                for packed in status.details:
                    name = packed.TypeName().rpartition(".")[2]
                    details[name] = DETAILS[name]()
                    packed.Unpack(details[name])
        return cls(error.code(), error.details() or "", details, dict(error.trailing_metadata() or ()))


@dataclass
class Answer:
    """A call that ended with OK. Fields of the message are attributes of this, too."""

    message: Any
    trailing: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.message, name)

    @property
    def status_name(self) -> str:
        return str(json_format.MessageToDict(self.message)["status"])

    @property
    def replayed(self) -> bool:
        return self.trailing.get("dp-replayed") == "true"


class Client:
    """Calls by name over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def request(self, method: str, fields: dict[str, Any]) -> tuple[Message, Any]:
        """The request message, and how to read the answer's bytes."""
        raise NotImplementedError

    async def call(
        self,
        method: str,
        *,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float = TIMEOUT_SECONDS,
        **fields: Any,
    ) -> Answer:
        request, read = self.request(method, fields)
        return await self.send(method, request.SerializeToString(), read, metadata, timeout)

    async def send(
        self,
        method: str,
        data: bytes,
        read: Any = bytes,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float = TIMEOUT_SECONDS,
    ) -> Answer:
        """A call with any bytes as its request."""
        multicallable: Any = self.channel.unary_unary(f"/{SERVICE}/{method}", response_deserializer=read)
        call = multicallable(data, metadata=metadata, timeout=timeout)
        try:
            message = await call
        except grpc.aio.AioRpcError as error:
            raise Refused.of(error) from None
        return Answer(message, dict(await call.trailing_metadata()))


class TypedClient(Client):
    """From the generated code."""

    def request(self, method: str, fields: dict[str, Any]) -> tuple[Message, Any]:
        described = pb.DESCRIPTOR.services_by_name["DeploymentPipeline"].methods_by_name[method]
        assert hasattr(pb_grpc.DeploymentPipelineServicer, method)
        request: Message = getattr(pb, described.input_type.name)(**fields)
        return request, getattr(pb, described.output_type.name).FromString


class ReflectionClient(Client):
    """From what the server's reflection service says, and nothing else."""

    def __init__(self, channel: grpc.aio.Channel, pool: descriptor_pool.DescriptorPool) -> None:
        super().__init__(channel)
        self._service = pool.FindServiceByName(SERVICE)

    @classmethod
    async def connect(cls, channel: grpc.aio.Channel) -> "ReflectionClient":
        files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def ask(**question: str) -> None:
            stream = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]))
            async for answer in stream:
                for data in answer.file_descriptor_response.file_descriptor_proto:
                    file = descriptor_pb2.FileDescriptorProto.FromString(data)
                    if file.name not in files:
                        files[file.name] = file
                        for needed in file.dependency:
                            await ask(file_by_filename=needed)

        async with asyncio.timeout(TIMEOUT_SECONDS):
            await ask(file_containing_symbol=SERVICE)
        pool = descriptor_pool.DescriptorPool()

        def add(name: str) -> None:
            for needed in files[name].dependency:
                add(needed)
            pool.Add(files[name])

        for name in files:
            add(name)
        return cls(channel, pool)

    def request(self, method: str, fields: dict[str, Any]) -> tuple[Message, Any]:
        described = self._service.methods_by_name[method]
        request: Message = message_factory.GetMessageClass(described.input_type)(**fields)
        return request, message_factory.GetMessageClass(described.output_type).FromString


def published_config() -> str:
    """The service config of docs/clients.md."""
    [text] = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.DOTALL)
    return json.dumps(json.loads(text))
