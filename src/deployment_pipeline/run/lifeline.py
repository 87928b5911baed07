"""The line between a supervisor and a worker: a socket pair, with one message a line.

The worker says `serving` when it serves. From then on the supervisor asks `alive?`, and the worker's event
loop answers `ready`, or just `alive` if it should get no calls. To `metrics?` it answers `metrics` and their
text as JSON. The line's end tells either process that the other one has ended.
"""

import asyncio
import contextlib
import json
import os
import socket

import structlog

from deployment_pipeline.run.report import Report

SERVING, READY, ALIVE, METRICS = b"serving\n", b"ready\n", b"alive\n", b"metrics "
IS_ALIVE, WHICH_METRICS = b"alive?\n", b"metrics?\n"
# Of metrics. A worker's take some 50 KiB.
MAX_BYTES = 8 * 1024 * 1024
# How long the metrics may take.
METRICS_SECONDS = 2.0
# With more questions than this unanswered, a worker is not ready. They come once a second.
MAX_UNANSWERED_READY = 2

log = structlog.get_logger()


def say_serving(lifeline: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the supervisor is gone, and so shall we be
        os.write(lifeline, SERVING)


async def answer(lifeline: int, report: Report) -> None:
    """Answer a supervisor's questions until it is gone. lifeline: the worker's file descriptor. It stays open
    for as long as the process lives."""
    end = socket.fromfd(lifeline, socket.AF_UNIX, socket.SOCK_STREAM)  # a duplicate
    reader, writer = await asyncio.open_unix_connection(sock=end)
    with contextlib.closing(writer):
        while question := await _message(reader):
            if question == WHICH_METRICS:
                writer.write(METRICS + await _metrics(report) + b"\n")
            else:
                writer.write(READY if report.is_ready() else ALIVE)


async def _metrics(report: Report) -> bytes:
    """As JSON. None, rather than that a worker ends for want of them."""
    try:
        said = json.dumps(await report.exposition()).encode()
        if len(said) <= MAX_BYTES:
            return said
        log.error("metrics are left out: they are too long", bytes=len(said))
    except Exception:
        log.exception("metrics are left out: they could not be made")
    return b'""'


class Lifeline:
    """The supervisor's end. `hear` is called by one task at a time, again and again; the rest by any."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._exposition: asyncio.Future[str | None] | None = None
        self._is_ready = False
        self.serves = False  # from the moment when it says so until its end
        self.unanswered = 0  # questions whether it is alive, since its last message

    @classmethod
    async def open(cls) -> tuple["Lifeline", socket.socket]:
        """With the worker's end."""
        end, other_end = socket.socketpair()
        return cls(*await asyncio.open_unix_connection(sock=end, limit=MAX_BYTES + len(METRICS))), other_end

    @property
    def is_ready(self) -> bool:
        return self._is_ready and self.unanswered <= MAX_UNANSWERED_READY

    def ask(self) -> None:
        self._writer.write(IS_ALIVE)
        self.unanswered += 1

    async def hear(self) -> bool:
        """Take in the next message. False: the line has ended."""
        message = await _message(self._reader)
        if not message:
            self.serves = False
            self._tell(None)
            return False
        self.unanswered = 0
        if message.startswith(METRICS):
            self._tell(json.loads(message.removeprefix(METRICS)))
        else:
            self.serves |= message == SERVING
            self._is_ready = message in (SERVING, READY)
        return True

    async def exposition(self) -> str | None:
        """The worker's metrics; None if it does not answer in time."""
        if self._exposition is None:  # one question at a time: it may be hung
            self._exposition = asyncio.get_running_loop().create_future()
            self._writer.write(WHICH_METRICS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(METRICS_SECONDS):
                return await asyncio.shield(self._exposition)
        return None

    def close(self) -> None:
        self._writer.close()

    def _tell(self, exposition: str | None) -> None:
        if self._exposition:
            self._exposition.set_result(exposition)
            self._exposition = None


async def _message(reader: asyncio.StreamReader) -> bytes:
    """The next one; nothing at the line's end."""
    try:
        return await reader.readline()
    except ConnectionError:  # it ended with something unread
        return b""
