"""Servers that are stopped while connections are busy, and what their callers hear."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Mapping

import grpc

from support.clients import Refused, TypedClient
from support.servers import Server

CONNECTIONS = 12
OPEN_LOOP_SECONDS = 0.005


class Workers(Server):
    arguments = ("serve", "--workers", "2")


def heard(refused: Refused) -> str:
    """The reason, or without one the code, which is then the network's."""
    return refused.reason if "ErrorInfo" in refused.details else refused.code.name


async def stop_while_busy(
    settings: Mapping[str, str], pipeline: str, *, workers: bool, open_loop: bool
) -> Counter[str]:
    """How often callers heard what, of clients that repeat nothing by themselves. open_loop: they send
    whether or not they have been answered."""
    counts: Counter[str] = Counter()
    server = await asyncio.to_thread(Workers if workers else Server, settings)
    over = False
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(lambda: server.process.poll() is None and server.stop(signal.SIGKILL))
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(server.address, options=options))
            for _ in range(CONNECTIONS)
        ]

        async def call(client: TypedClient) -> str:
            try:
                await client.call("GetPipeline", name=pipeline)
            except Refused as refused:
                counts[said := heard(refused)] += 1
                return said
            counts["OK"] += 1
            return "OK"

        async def one_by_one(client: TypedClient) -> None:
            while await call(client) in ("OK", "SHUTTING_DOWN"):
                pass

        async def all_the_time(client: TypedClient) -> None:
            async with asyncio.TaskGroup() as calls:
                while not over:
                    calls.create_task(call(client))
                    await asyncio.sleep(OPEN_LOOP_SECONDS)

        clients = [TypedClient(channel) for channel in channels]
        caller = all_the_time if open_loop else one_by_one
        callers = [asyncio.create_task(caller(client)) for client in clients]
        while counts["OK"] < 10 * CONNECTIONS:  # noqa: ASYNC110  # a condition of many writers
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(server.stop) == 0
        over = True
        await asyncio.gather(*callers)
    return counts
