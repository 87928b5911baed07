"""A proxy between the service and a store, which counts what the service asks and can hold it back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict

CHUNK = 65536

_FIELDS = b"SFATAL\0VFATAL\0C08P01\0Mserver conn crashed?\0\0"
# What a pooler says in the place of an answer when its own connection broke.
POOLER_CRASH = b"E" + (len(_FIELDS) + 4).to_bytes(4) + _FIELDS

Split = Callable[[bytearray], list[bytes]]


def postgres_messages(buffer: bytearray) -> list[bytes]:
    """Take the complete frontend messages out of the buffer."""
    messages = []
    while len(buffer) >= 5:
        # Only the start-up message (and a request for SSL) has no type byte: its length begins with 0.
        head = 0 if buffer[0] == 0 else 1
        size = head + int.from_bytes(buffer[head : head + 4])
        if len(buffer) < size:
            break
        messages.append(bytes(buffer[:size]))
        del buffer[:size]
    return messages


def redis_commands(buffer: bytearray) -> list[bytes]:
    """Take the complete commands (RESP arrays of bulk strings) out of the buffer."""
    commands: list[bytes] = []
    while True:
        at = buffer.find(b"\r\n")
        if at < 0:
            break
        end = at + 2
        for _ in range(int(buffer[1:at])):
            at = buffer.find(b"\r\n", end)
            if at < 0:
                return commands
            end = at + 2 + int(buffer[end + 1 : at]) + 2
        if len(buffer) < end:
            break
        commands.append(bytes(buffer[:end]))
        del buffer[:end]
    return commands


class Proxy:
    """`asked` holds what was asked since `reset`; what comes after `free` of it waits until `release`.
    While it is `away`, connections break and new ones are closed at once. Once it is to `lose_answers`, it
    forwards what is asked, then goes away at the first answer; `lose_one_answer` costs one connection,
    and `crash_one_answer` puts a pooler's last words in its place."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self.ends: set[asyncio.StreamWriter] = set()
        self._away = False
        self.lose_answers = False
        self.lose_one_answer = False
        self.crash_one_answer = False
        self.address = ""
        self.upstream: str | tuple[str, int] = ""  # a socket's path, or host and port
        self.delay_seconds = 0.0
        self.black_hole = False
        self.affected = 0  # what a fault of this proxy has hit
        self.reset()

    @property
    def away(self) -> bool:
        return self._away

    @away.setter
    def away(self, away: bool) -> None:
        self._away = away
        if away:
            for writer in self.ends:
                writer.transport.abort()

    def reset(self, free: int | None = None) -> None:
        self.asked: list[bytes] = []
        self._free = free
        self._released = asyncio.Event()

    def release(self) -> None:
        self._released.set()

    def count(self, *kinds: bytes) -> int:
        """How many asked things begin with one of these."""
        return sum(asked.startswith(kinds) for asked in self.asked)

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer = bytearray()
        while data := await reader.read(CHUNK):
            buffer += data
            for message in self._split(buffer):
                self.asked.append(message)
                if self._free is not None and len(self.asked) > self._free:
                    await self._released.wait()
                writer.write(message)
            await writer.drain()

    async def back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            while self.black_hole:
                self.affected += 1
                await asyncio.sleep(0.05)
            if self.delay_seconds:
                self.affected += 1
                await asyncio.sleep(self.delay_seconds)
            if self.lose_answers:
                self.away = True
                return
            if self.lose_one_answer:
                self.lose_one_answer = False
                self.affected += 1
                return
            if self.crash_one_answer:
                self.crash_one_answer = False
                writer.write(POOLER_CRASH)
                await writer.drain()
                return
            writer.write(data)
            await writer.drain()


async def _first_end(*pumps: Coroutine[None, None, None]) -> None:
    """Both directions, until one of them ends."""
    tasks = [asyncio.create_task(pump) for pump in pumps]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _proxy(split: Split, upstream: str | tuple[str, int]) -> AsyncIterator[Proxy]:
    proxy = Proxy(split)
    proxy.upstream = upstream
    async with serving(proxy):
        yield proxy


@contextlib.asynccontextmanager
async def serving(proxy: Proxy) -> AsyncIterator[None]:
    """Let the proxy carry connections, at the address that it then has, until the context ends."""
    connections: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(proxy.upstream, str):
            up_reader, up_writer = await asyncio.open_unix_connection(proxy.upstream)
        else:
            up_reader, up_writer = await asyncio.open_connection(*proxy.upstream)
        ends = {writer, up_writer}
        proxy.ends |= ends
        await _first_end(proxy.forward(reader, up_writer), proxy.back(up_reader, writer))
        proxy.ends -= ends
        await _close(up_writer)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def serve() -> None:
            if proxy.away:
                proxy.affected += 1
            else:
                with contextlib.suppress(OSError):  # nobody is there
                    await carry(reader, writer)
            await _close(writer)

        task = asyncio.create_task(serve())
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield
    finally:
        server.close()
        proxy.black_hole = False
        proxy.release()
        proxy.away = True
        await asyncio.gather(*connections)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def postgres_proxy(database_url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """The proxy, and the URL that leads through it."""
    info = conninfo_to_dict(database_url)
    host, port = str(info.get("host", "localhost")), int(info.get("port") or 5432)
    path = str(Path(host) / f".s.PGSQL.{port}")
    async with _proxy(postgres_messages, path if host.startswith("/") else (host, port)) as proxy:
        password = f":{info['password']}" if info.get("password") else ""
        user = f"{info.get('user', 'postgres')}{password}"
        yield proxy, f"postgresql://{user}@{proxy.address}/{info['dbname']}?sslmode=disable"


@contextlib.asynccontextmanager
async def redis_proxy(redis_url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """The proxy, and the URL that leads through it."""
    url = urlsplit(redis_url)
    upstream = url.path if url.scheme == "unix" else (url.hostname or "", url.port or 6379)
    async with _proxy(redis_commands, upstream) as proxy:
        yield proxy, f"redis://{proxy.address}/0"
