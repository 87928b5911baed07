"""Answers that get lost on their way: what was asked for has been done, and then the connection breaks."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

from support.proxy import CHUNK, Proxy, serving

HEADERS = 1
HEADER_BYTES = 9
# Closing resets the connection instead of ending it.
RESET = struct.pack("ii", 1, 0)


def http2_frames(buffer: bytearray) -> list[bytes]:
    """Take the complete frames out of the buffer."""
    frames = []
    while len(buffer) >= HEADER_BYTES:
        size = HEADER_BYTES + int.from_bytes(buffer[:3])
        if len(buffer) < size:
            break
        frames.append(bytes(buffer[:size]))
        del buffer[:size]
    return frames


async def nothing() -> None:
    pass


class LosingProxy(Proxy):
    """Loses answers at that rate: as one begins to arrive, the connection is ended or reset, which other
    calls on it feel, too."""

    def __init__(self, losses: "Losses", upstream: str) -> None:
        super().__init__(http2_frames)
        host, _, port = upstream.rpartition(":")
        self.upstream = (host, int(port))
        self._losses = losses

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()

    async def back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer, begun = bytearray(), set[int]()
        while data := await reader.read(CHUNK):
            buffer += data
            for frame in http2_frames(buffer):
                stream = int.from_bytes(frame[5:HEADER_BYTES])
                if frame[3] == HEADERS and stream not in begun:
                    begun.add(stream)
                    if await self._losses.next_is_lost():
                        self._losses.break_off(writer)
                        return
                writer.write(frame)
            await writer.drain()


class Losses:
    """Of one run. rate: how many of the answers are lost, from 0 to 1. Between two of them there are at most
    twice as many answers as on average."""

    def __init__(self, rate: float, rng: random.Random) -> None:
        self.rate = rate
        self._rng = rng
        self._until_next = 1
        self.count = 0
        # Awaited when an answer is lost and nobody has noticed yet.
        self.before_each: Callable[[], Awaitable[None]] = nothing

    async def next_is_lost(self) -> bool:
        self._until_next -= 1
        if self._until_next:
            return False
        self._until_next = self._rng.randint(1, round(2 / self.rate) - 1)
        self.count += 1
        await self.before_each()
        return True

    def break_off(self, writer: asyncio.StreamWriter) -> None:
        if self._rng.random() < 0.5:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()

    @contextlib.asynccontextmanager
    async def before(self, upstream: str) -> AsyncIterator[str]:
        """Stand before that address, if any are to be lost. Yields the address to use in its place."""
        if not self.rate:
            yield upstream
            return
        proxy = LosingProxy(self, upstream)
        async with serving(proxy):
            yield proxy.address
