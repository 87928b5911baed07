"""What `healthcheck` makes of whoever answers at DP_METRICS_LISTEN."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from deployment_pipeline.cli import healthcheck
from deployment_pipeline.cli.healthcheck import NobodyToAsk, check
from deployment_pipeline.run import listening
from deployment_pipeline.run.endpoint import answering
from deployment_pipeline.run.report import Report
from deployment_pipeline.run.settings import Settings
from support.servers import free_address

OWN = "127.0.0.1:50051"


async def checked(metrics_listen: str, service: str = "readiness", listen: str = OWN) -> str:
    settings = Settings(metrics_listen=metrics_listen, listen=listen)
    return await asyncio.to_thread(check, settings, service)


@contextlib.asynccontextmanager
async def served(*addresses: str, is_ready: bool = True) -> AsyncIterator[str]:
    """Where an endpoint answers, of a server with these gRPC addresses."""

    async def exposition() -> str:
        return ""

    listener = listening.alone("127.0.0.1:0", "DP_METRICS_LISTEN")
    where = f"127.0.0.1:{listener.getsockname()[1]}"
    async with answering(listener, Report(addresses, lambda: is_ready, exposition)):
        yield where


@contextlib.asynccontextmanager
async def says(answer: bytes) -> AsyncIterator[str]:
    """Where something else answers."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("service", "is_ready", "said"),
    [
        ("readiness", True, "SERVING"),
        ("readiness", False, "NOT_SERVING"),
        ("liveness", True, "SERVING"),
        ("liveness", False, "SERVING"),
    ],
)
async def test_it_says_what_the_server_says(service: str, is_ready: bool, said: str) -> None:
    async with served(OWN, is_ready=is_ready) as where:
        assert await checked(where, service) == said


async def test_what_listens_everywhere_is_asked_on_loopback() -> None:
    async with served(OWN) as where:
        assert await checked(f"0.0.0.0:{where.rpartition(':')[2]}") == "SERVING"


@pytest.mark.parametrize(
    "listen",
    [
        "mtls://0.0.0.0:50051,tls://0.0.0.0:50052,plain://127.0.0.1:50053",
        "tls://[::]:50052",
        "plain://localhost:0",
    ],
)
async def test_every_listener_that_is_set_must_be_served(listen: str) -> None:
    own = [part.rpartition("://")[2] for part in listen.split(",")]
    async with served("0.0.0.0:50051", "0.0.0.0:50052", "127.0.0.1:50053") as where:
        assert await checked(where, listen=listen) == "SERVING"
        assert await checked(where, listen=f"{listen},plain://127.0.0.1:50054") == (
            f"ANOTHER_SERVER: the one that answers at {where} (DP_METRICS_LISTEN) serves gRPC on"
            " 0.0.0.0:50051, 0.0.0.0:50052, 127.0.0.1:50053,"
            f" not on {', '.join(own)}, 127.0.0.1:50054 (DP_LISTEN)"
        )


@pytest.mark.parametrize("service", ["readiness", "liveness"])
async def test_a_neighbours_answer_is_not_taken_for_ones_own(service: str) -> None:
    async with served("127.0.0.1:50099") as where:
        said = await checked(where, service)
    assert said.startswith("ANOTHER_SERVER: ")
    assert "127.0.0.1:50099, not on 127.0.0.1:50051 (DP_LISTEN)" in said


@pytest.mark.parametrize(
    "body",
    [
        b"# HELP up\n",
        b"",
        b"[]",
        b'"SERVING"',
        b"{}",
        b'{"status": "SERVING"}',
        b'{"status": "SERVING", "listen": 1}',
        b"\xff",
        json.dumps({"status": "SERVING", "listen": ["127.0.0.1:50051" * 10_000]}).encode(),
    ],
)
async def test_something_else_that_speaks_http_is_told_apart(body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with says(head + body) as where:
        assert await checked(where) == (
            f"ANOTHER_SERVER: what answers at {where} (DP_METRICS_LISTEN) is not a deployment-pipeline"
        )


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n"])
async def test_what_does_not_speak_http_is_no_answer(answer: bytes) -> None:
    async with says(answer) as where:
        assert await checked(where) == f"NO_ANSWER: no server answers at {where} (DP_METRICS_LISTEN)"


async def test_nobody_there_is_no_answer() -> None:
    where = free_address()
    assert await checked(where) == f"NO_ANSWER: no server answers at {where} (DP_METRICS_LISTEN)"


async def test_one_that_does_not_answer_in_time_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "ANSWER_SECONDS", 0.1)
    with listening.alone("127.0.0.1:0", "DP_METRICS_LISTEN") as silent:
        async with asyncio.timeout(10):
            said = await checked(f"127.0.0.1:{silent.getsockname()[1]}")
    assert said.startswith("NO_ANSWER: ")


async def test_without_a_proxy_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with served(OWN) as where:
        assert await checked(where) == "SERVING"


@pytest.mark.parametrize(
    ("metrics_listen", "why"), [("", "DP_METRICS_LISTEN is empty"), ("127.0.0.1:0", "has port 0")]
)
async def test_without_an_endpoint_it_says_so(metrics_listen: str, why: str) -> None:
    with pytest.raises(NobodyToAsk, match=why):
        await checked(metrics_listen)
