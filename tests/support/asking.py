"""Questions to the HTTP endpoint."""

import asyncio
import http.client
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

ANSWER_SECONDS = 10


class Answer(NamedTuple):
    status: int
    body: str

    @property
    def said(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


def ask(address: str, path: str) -> Answer:
    """Raises OSError if nobody answers there."""
    connection = http.client.HTTPConnection(address, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read().decode())
    finally:
        connection.close()


async def asked(address: str, path: str) -> Answer:
    """As `ask`, beside the event loop that answers."""
    return await asyncio.to_thread(ask, address, path)


async def until(address: str, path: str, holds: Callable[[Answer], bool], seconds: float = 20) -> Answer:
    """The first answer of which it holds."""
    end = time.monotonic() + seconds
    while not holds(answer := await asked(address, path)):
        assert time.monotonic() < end, f"still {answer}"
        await asyncio.sleep(0.02)
    return answer


async def until_ready(address: str, *, ready: bool) -> Answer:
    return await until(address, "/healthz/ready", lambda answer: answer.status == (200 if ready else 503))
