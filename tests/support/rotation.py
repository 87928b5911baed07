"""Certificates that are replaced under load: the calls meanwhile, and what each process serves."""

import asyncio
import contextlib
import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence

import grpc
from cryptography import x509

from support.certificates import Pair
from support.clients import TypedClient
from support.handshakes import connection
from support.processes import accepted_by

OLD, NEW = "old connections", "new connections"
# Between two calls of a caller.
PAUSE_SECONDS = 0.005


@contextlib.asynccontextmanager
async def load(
    ways: Sequence[tuple[str, grpc.ChannelCredentials]], pipeline: str, callers: int
) -> AsyncIterator[Counter[str]]:
    """To each of these addresses, so many callers keep a connection, and one makes a new one for every call.
    Yields how many calls were answered. One that fails ends everything."""
    calls: Counter[str] = Counter()
    over = asyncio.Event()

    async def keep_one(address: str, credentials: grpc.ChannelCredentials) -> None:
        async with connection(address, credentials) as channel:
            while not over.is_set():
                await call(channel, OLD)

    async def make_new_ones(address: str, credentials: grpc.ChannelCredentials) -> None:
        while not over.is_set():
            async with connection(address, credentials) as channel:
                await call(channel, NEW)

    async def call(channel: grpc.aio.Channel, kind: str) -> None:
        await TypedClient(channel).call("GetPipeline", name=pipeline)
        calls[kind] += 1
        await asyncio.sleep(PAUSE_SECONDS)

    async with asyncio.TaskGroup() as tasks:
        for way in ways:
            tasks.create_task(make_new_ones(*way))
            for _ in range(callers):
                tasks.create_task(keep_one(*way))
        try:
            yield calls
        finally:
            over.set()


class Handshakes:
    """What servers on this machine show to new connections. pair: what these show the server, if it asks."""

    def __init__(self, pair: Pair) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.set_alpn_protocols(["h2"])  # without it, gRPC hangs up
        with tempfile.NamedTemporaryFile() as file:
            file.write(pair.key + pair.chain)
            file.flush()
            self._context.load_cert_chain(file.name)

    def serial(self, address: str) -> int:
        """Of the certificate that a new connection gets."""
        with self._connection(address) as connection:
            return _serial(connection)

    def taken_by(self, address: str, pids: Sequence[int]) -> tuple[int, int]:
        """The process, one of these, that a new connection meets, and what `serial` returns."""
        with self._connection(address) as connection:
            return accepted_by(pids, connection), _serial(connection)

    @contextlib.contextmanager
    def _connection(self, address: str) -> Iterator[ssl.SSLSocket]:
        host, _, port = address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            self._context.wrap_socket(plain) as encrypted,
        ):
            yield encrypted


def _serial(connection: ssl.SSLSocket) -> int:
    shown = connection.getpeercert(binary_form=True)
    assert shown
    return x509.load_der_x509_certificate(shown).serial_number
