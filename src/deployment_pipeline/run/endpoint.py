"""Health and metrics over HTTP: for probes that speak no gRPC or have no certificate, and for Prometheus.

It speaks in the clear and asks nobody who they are, so it tells nothing that not everybody may know, such as
the names of pipelines. And nobody can make it cost much: a connection takes one short request, and ends soon.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

import h11
import structlog

from deployment_pipeline.run import listening
from deployment_pipeline.run.listening import CannotListen
from deployment_pipeline.run.report import Report
from deployment_pipeline.run.settings import Settings, variable

# Of a request line with its headers. Probes and Prometheus need a few hundred.
MAX_HEAD_BYTES = 4096
# For a connection to say its request and to take its answer.
CONNECTION_SECONDS = 5.0
# At a time; more are closed at once.
MAX_CONNECTIONS = 16
# Metrics are not made more often than this: each time costs every worker some milliseconds.
FRESH_SECONDS = 0.5

LIVE, READY, METRICS = "/healthz/live", "/healthz/ready", "/metrics"
SERVING, NOT_SERVING = "SERVING", "NOT_SERVING"
ALLOWED = "GET, HEAD"
TEXT = "text/plain; charset=utf-8"
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"

log = structlog.get_logger()


def bound(settings: Settings) -> socket.socket | None:
    """The endpoint's listening socket. None if there is to be no endpoint, or if nobody asked for the address
    and it is taken. Raises CannotListen."""
    if not settings.metrics_listen:
        return None
    try:
        return listening.alone(settings.metrics_listen, variable("metrics_listen"))
    except CannotListen as error:
        if "metrics_listen" in settings.model_fields_set:
            raise
        log.warning("there is no endpoint for health and metrics", error=str(error))
        return None


@contextlib.asynccontextmanager
async def answering(listener: socket.socket | None, report: Report) -> AsyncIterator[None]:
    """Answer what is asked there, until the context ends."""
    if listener is None:
        yield
        return
    server = await asyncio.start_server(_Endpoint(report).serve, sock=listener, limit=MAX_HEAD_BYTES)
    try:
        yield
    finally:
        server.close()  # connections that there are end with the process, or in a moment


class _Answer(NamedTuple):
    status: HTTPStatus
    text: str
    type: str = TEXT


class _Endpoint:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._connections = 0
        self._metrics: asyncio.Future[str] | None = None
        self._stale_at = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection, until its end."""
        if self._connections >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections += 1
        try:
            async with asyncio.timeout(CONNECTION_SECONDS):
                await self._converse(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.CancelledError):
            pass  # slow, gone, or the end
        except Exception:
            if not writer.is_closing():  # uvloop does not say with a ConnectionError that somebody is gone
                log.exception("the endpoint could not answer")
        finally:
            self._connections -= 1
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)  # so that `drain` returns when the kernel has it all
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES - 1)
        has_body = True
        try:
            request = await _request(connection, reader)
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            answer = _Answer(status, f"{status.phrase}\n")
        else:
            if request is None:
                return
            answer, has_body = await self._answer(request), request.method != b"HEAD"
        body = answer.text.encode()
        writer.write(_head(connection, answer, len(body)) + (body if has_body else b""))
        await writer.drain()
        writer.write_eof()
        # A connection that is closed with something unread is reset, and the answer may be lost with it.
        while await reader.read(MAX_HEAD_BYTES):
            pass

    async def _answer(self, request: h11.Request) -> _Answer:
        if request.method not in (b"GET", b"HEAD"):
            return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered\n")
        path = request.target.partition(b"?")[0].decode()
        if path == LIVE:
            return self._health(True)
        if path == READY:
            return self._health(self._report.is_ready())
        if path == METRICS:
            return _Answer(HTTPStatus.OK, await self._exposition(), EXPOSITION)
        return _Answer(HTTPStatus.NOT_FOUND, f"there are only {LIVE}, {READY} and {METRICS}\n")

    def _health(self, serves: bool) -> _Answer:
        """With the gRPC addresses, so that nobody takes a neighbour's answer for ours."""
        status = HTTPStatus.OK if serves else HTTPStatus.SERVICE_UNAVAILABLE
        said = {"status": SERVING if serves else NOT_SERVING, "listen": [*self._report.listen]}
        return _Answer(status, f"{json.dumps(said)}\n", "application/json")

    async def _exposition(self) -> str:
        now = asyncio.get_running_loop().time()
        if self._metrics is None or now >= self._stale_at:
            self._metrics = asyncio.ensure_future(self._report.exposition())
            self._stale_at = now + FRESH_SECONDS
        return await asyncio.shield(self._metrics)


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """None: the client has closed the connection without one. Raises h11.RemoteProtocolError."""
    room = MAX_HEAD_BYTES
    while (event := connection.next_event()) is h11.NEED_DATA:
        data = await reader.read(room)
        room -= len(data)
        connection.receive_data(data)
    return event if isinstance(event, h11.Request) else None


def _head(connection: h11.Connection, answer: _Answer, size: int) -> bytes:
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", answer.type),
        ("Content-Length", str(size)),
        ("Connection", "close"),
    ]
    if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("Allow", ALLOWED))
    response = h11.Response(status_code=answer.status, reason=answer.status.phrase, headers=headers)
    return connection.send(response) or b""
