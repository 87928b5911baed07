"""The limit of gRPC in Python: handlers that do nothing, on the service's own server options.

python -m benchmarks.echo PORT serves until SIGTERM; several may share a port.
"""

import asyncio
import signal
import sys

import grpc
import uvloop

from deployment_pipeline.edge.rpc import OPTIONS

SERVICE, METHOD = "benchmark.Echo", "Echo"
PATH = f"/{SERVICE}/{METHOD}"


async def echo(request: bytes, context: object) -> bytes:
    return b""


async def main(port: int) -> None:
    server = grpc.aio.server(options=(*OPTIONS, ("grpc.so_reuseport", 1)))
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)
    server.add_registered_method_handlers(SERVICE, {METHOD: handler})
    server.add_insecure_port(f"127.0.0.1:{port}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    print("serving", flush=True)
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
