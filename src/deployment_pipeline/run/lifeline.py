"""The line between a supervisor and a worker: a socket pair, with one message a line.

The worker says SERVING when it serves. From then on the supervisor asks ALIVE?, and the worker's event loop
answers. Its end tells either of them that the other process has ended.
"""

import asyncio
import contextlib
import os
import socket

SERVING = b"serving\n"
QUESTION = b"alive?\n"
ANSWER = b"alive\n"


def say_serving(lifeline: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the supervisor is gone, and so shall we be
        os.write(lifeline, SERVING)


async def answer(lifeline: int) -> None:
    """Answer a supervisor's questions until it is gone. lifeline: the worker's file descriptor. It stays open
    for as long as the process lives."""
    end = socket.fromfd(lifeline, socket.AF_UNIX, socket.SOCK_STREAM)  # a duplicate
    reader, writer = await asyncio.open_unix_connection(sock=end)
    with contextlib.closing(writer):
        while await message(reader):
            writer.write(ANSWER)


async def message(reader: asyncio.StreamReader) -> bytes:
    """The next one; nothing at the line's end."""
    try:
        return await reader.readline()
    except ConnectionError:  # it ended with something unread
        return b""
