"""A load generator: unary gRPC calls as prepared HTTP/2 frames.

A gRPC client in Python costs as much as the server that is measured; this one costs a sixth of that. It does
what these calls need and no more: requests that fit into one frame, no compression, no retries.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
HEADER_BYTES = 9
PREFIX_BYTES = 5  # of a message
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 3, 4
WINDOW = 2**31 - 1
FIRST_WINDOW = 65_535
# How many calls may be under way until the server says how many.
FIRST_MAX_STREAMS = 100
# The first dynamic entry of a header table; those below are in the specification.
FIRST_DYNAMIC = 62
STATIC = {":authority": 1, ":path": 4, "authorization": 23, "content-type": 31}
# The largest length that fits into its first byte (RFC 7541, 5.1).
SHORT = 126

Metadata = Sequence[tuple[str, str]]
POST_HTTP = bytes([0x80 | 3, 0x80 | 6])

# Called with the gRPC status and the message (of an error: nothing).
Done = Callable[[int, bytes], None]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


class RequestHeaders:
    """The header blocks of one connection: after the first request to a path, a few bytes."""

    def __init__(self, authority: str, metadata: Metadata) -> None:
        self._table: list[tuple[str, str]] = []
        self._known: dict[str, bytes] = {}
        self._common = (
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "dp-benchmark"),
            ("grpc-timeout", "10S"),
            *metadata,
        )

    def block(self, path: str) -> bytes:
        if path in self._known:
            return self._known[path]
        headers = ((":path", path), *self._common)
        new = [header for header in headers if header not in self._table]
        encoded = POST_HTTP + b"".join(self._encode(header) for header in headers)
        if new:
            self._known.clear()  # every index has moved
        else:
            self._known[path] = encoded
        return encoded

    def _encode(self, header: tuple[str, str]) -> bytes:
        if header in self._table:
            return bytes([0x80 | FIRST_DYNAMIC + self._table.index(header)])
        self._table.insert(0, header)
        name, value = header
        known = STATIC.get(name)
        raw = b"" if known else _text(name)
        return bytes([0x40 | (known or 0)]) + raw + _text(value)


def _text(text: str) -> bytes:
    """With its length before it."""
    size, raw = len(text), text.encode()
    if size <= SHORT:
        return bytes([size]) + raw
    size -= SHORT + 1
    length = bytearray([SHORT + 1])
    while size >= 0x80:
        length.append(0x80 | size & 0x7F)
        size >>= 7
    return bytes(length) + bytes([size]) + raw


class Connection(asyncio.Protocol):
    def __init__(self, authority: str, metadata: Metadata = ()) -> None:
        self._headers = RequestHeaders(authority, metadata)
        self._calls: dict[int, tuple[Done, list[bytes]]] = {}
        self._stream = 1
        self._window = FIRST_WINDOW
        self._max_streams = FIRST_MAX_STREAMS
        self._held: deque[tuple[str, bytes, Done]] = deque()
        self._unread = b""
        self._consumed = 0
        self._out: list[bytes] = []
        self.failed = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        # Without a header table of ours, every answer's headers are written out: they are read by a look.
        settings = b"".join(
            key.to_bytes(2) + value.to_bytes(4)
            for key, value in ((HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, WINDOW))
        )
        more = (WINDOW - FIRST_WINDOW).to_bytes(4)
        transport.write(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, error: Exception | None) -> None:
        self.failed = self.failed or f"the connection was lost: {error}"

    def call(self, path: str, message: bytes, done: Done) -> None:
        if self.failed:
            raise ConnectionError(self.failed)
        body = b"\0" + len(message).to_bytes(4) + message
        if not self._fits(len(body)):
            self._held.append((path, message, done))
            return
        self._window -= len(body)
        stream, self._stream = self._stream, self._stream + 2
        self._calls[stream] = (done, [])
        self._send(
            frame(HEADERS, END_HEADERS, stream, self._headers.block(path))
            + frame(DATA, END_STREAM, stream, body)
        )

    def close(self) -> None:
        self.failed = "closed"
        self._transport.close()

    def _send(self, data: bytes) -> None:
        """What is sent in one step of the event loop goes in one write."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        self._transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        data = self._unread + data
        at, size = 0, len(data)
        while at + HEADER_BYTES <= size:
            end = at + HEADER_BYTES + int.from_bytes(data[at : at + 3])
            if end > size:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9])
            self._received(kind, flags, stream, data[at + HEADER_BYTES : end])
            at = end
        self._unread = data[at:]

    def _received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            if flags & END_STREAM:
                done, parts = self._calls.pop(stream)
                done(_status(payload), b"".join(parts)[5:])
                self._go_on()
        elif kind == DATA:
            self._calls[stream][1].append(payload)
            self._consumed += len(payload)
            if self._consumed > WINDOW // 2:
                self._send(frame(WINDOW_UPDATE, 0, 0, self._consumed.to_bytes(4)))
                self._consumed = 0
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload)
            self._go_on()
        elif kind == SETTINGS and not flags & ACK:
            settings = {payload[at + 1]: payload[at + 2 : at + 6] for at in range(0, len(payload), 6)}
            if MAX_CONCURRENT_STREAMS in settings:
                self._max_streams = int.from_bytes(settings[MAX_CONCURRENT_STREAMS])
            self._send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._send(frame(PING, ACK, 0, payload))
        elif kind in (RST_STREAM, GOAWAY):
            self.failed = f"the server sent {'RST_STREAM' if kind == RST_STREAM else 'GOAWAY'}"
            self._transport.close()

    def _go_on(self) -> None:
        """With what was held back."""
        while self._held and self._fits(PREFIX_BYTES + len(self._held[0][1])):
            self.call(*self._held.popleft())

    def _fits(self, size: int) -> bool:
        return size <= self._window and len(self._calls) < self._max_streams


def _status(block: bytes) -> int:
    name = b"grpc-status"
    at = block.index(name) + len(name)
    return int(block[at + 1 : at + 1 + block[at]])


async def connect(address: str, count: int, metadata: Metadata = ()) -> list[Connection]:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Connection(address, metadata), host, int(port))
        for _ in range(count)
    ]
    return [protocol for _, protocol in made]
