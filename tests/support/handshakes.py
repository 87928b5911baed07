"""A small gRPC server that says who calls, and calls to it, each over a connection of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from deployment_pipeline.edge.answers import Context
from deployment_pipeline.edge.identity.certificates import Certified
from deployment_pipeline.edge.identity.forwarded import Forwarded
from deployment_pipeline.edge.identity.proof import NotProven


@asynccontextmanager
async def asked(
    credentials: grpc.ServerCredentials | None, trust_domain: str = "", believed_from: str = ""
) -> AsyncIterator[str]:
    """Yields its address. credentials: None for a plain one. believed_from: as DP_XFCC_FROM."""
    certified, forwarded = Certified(trust_domain), Forwarded(believed_from, trust_domain)

    async def answer(_: bytes, context: Context) -> bytes:
        try:
            own = certified.principal(context)
            metadata = context.invocation_metadata() or ()
            principal = forwarded.principal(list(metadata), context.peer(), own) or own
        except NotProven as error:
            return f"not proven: {error}".encode()
        return (principal.id if principal else "nobody").encode()

    server = grpc.aio.server()
    method: Any = grpc.unary_unary_rpc_method_handler(answer)
    server.add_registered_method_handlers("test.Asked", {"Who": method})
    port = (
        server.add_secure_port("127.0.0.1:0", credentials)
        if credentials
        else server.add_insecure_port("127.0.0.1:0")
    )
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def who(channel: grpc.aio.Channel, *headers: tuple[str, str]) -> str:
    """The id, "nobody", or "not proven: …"."""
    method: Any = channel.unary_unary("/test.Asked/Who")
    return str((await method(b"", metadata=headers, timeout=10)).decode())


def connection(
    address: str, credentials: grpc.ChannelCredentials | None, *options: tuple[str, object]
) -> grpc.aio.Channel:
    """One that no other channel shares."""
    own = [("grpc.use_local_subchannel_pool", 1), *options]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=own)
    return grpc.aio.secure_channel(address, credentials, options=own)


async def who_over(
    address: str, credentials: grpc.ChannelCredentials | None, *options: tuple[str, object]
) -> str:
    """As `who`, over a new connection; "refused" if there can be none."""
    async with connection(address, credentials, *options) as channel:
        try:
            return await who(channel)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017
            return "refused"
