"""GET over https for what is small and must come soon: no redirects, no proxies, no retries."""

import asyncio
import ssl
from urllib.parse import urlsplit

import h11

from deployment_pipeline.release import VERSION

_READ_BYTES = 16 * 1024


class Refused(Exception):
    """The server gave an answer that is not taken."""


async def get(url: str, max_bytes: int) -> bytes:
    """Return the body of a 200. The certificate must be one that the system trusts (or SSL_CERT_FILE).

    Raises Refused, OSError, ValueError or h11.ProtocolError. How long it takes is up to the caller: inside
    asyncio.timeout, even a server that sends a byte now and then is cut off.
    """
    parts = urlsplit(url)
    # Reading all the CAs takes milliseconds. They are read each time, because they change while we run.
    trust = await asyncio.to_thread(ssl.create_default_context)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 443, ssl=trust)
    try:
        http = h11.Connection(h11.CLIENT)
        target = f"{parts.path or '/'}?{parts.query}".removesuffix("?")
        writer.write(_request(http, parts.netloc, target))
        return await _body(http, reader, max_bytes)
    finally:
        # Not close(): that would wait for the server.
        writer.transport.abort()


def _request(http: h11.Connection, host: str, target: str) -> bytes:
    headers = [
        ("Host", host),
        ("User-Agent", f"deployment-pipeline/{VERSION}"),
        ("Accept", "application/json"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    request = http.send(h11.Request(method="GET", target=target, headers=headers))
    return (request or b"") + (http.send(h11.EndOfMessage()) or b"")


async def _body(http: h11.Connection, reader: asyncio.StreamReader, max_bytes: int) -> bytes:
    body = b""
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(await reader.read(_READ_BYTES))
            case h11.Response(status_code=status) if status != 200:
                raise Refused(f"the answer has status {status}")
            case h11.Data(data=data):
                body += data
                if len(body) > max_bytes:
                    raise Refused(f"the answer is longer than {max_bytes} bytes")
            case h11.EndOfMessage():
                return body
