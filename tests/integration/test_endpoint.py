"""The HTTP endpoint: what it says, and what nobody can do to it."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import uvloop
from structlog.testing import capture_logs

from deployment_pipeline.run import endpoint, listening
from deployment_pipeline.run.endpoint import MAX_CONNECTIONS, MAX_HEAD_BYTES, answering, bound
from deployment_pipeline.run.listening import CannotListen
from deployment_pipeline.run.report import Report
from deployment_pipeline.run.settings import Settings

GRPC = "127.0.0.1:50051"
READ_SECONDS = 10
SHORT_SECONDS = 0.3


@dataclass
class Asked:
    """An endpoint, and what it answers with."""

    port: int = 0
    is_ready: bool = True
    texts: list[str] = field(default_factory=lambda: ["a 1\n"])  # one for each time that they are made
    made: int = 0
    takes_seconds: float = 0

    async def exposition(self) -> str:
        self.made += 1
        await asyncio.sleep(self.takes_seconds)
        return self.texts.pop(0)

    async def connect(self) -> "Peer":
        return Peer(*await asyncio.open_connection("127.0.0.1", self.port))

    async def ask(self, request: bytes) -> bytes:
        """All that comes back."""
        async with contextlib.aclosing(await self.connect()) as peer:
            peer.writer.write(request)
            return await peer.rest()

    async def get(self, path: str) -> bytes:
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


@dataclass
class Peer:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def rest(self) -> bytes:
        """Until the other end closes the connection, or resets it."""
        said = b""
        async with asyncio.timeout(READ_SECONDS):
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(65536):
                    said += data
        return said

    async def aclose(self) -> None:
        self.writer.transport.abort()


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    return int(first.split(" ")[1]), dict(line.lower().split(": ", 1) for line in headers), body


def status(answer: bytes) -> int:
    return parts(answer)[0]


@contextlib.contextmanager
def served(asked: Asked, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[None]:
    """In a thread, with an event loop of its own."""
    listener = listening.alone("127.0.0.1:0", "DP_METRICS_LISTEN")
    asked.port = listener.getsockname()[1]
    over = asyncio.Event()
    loops = Future[asyncio.AbstractEventLoop]()

    async def serve() -> None:
        async with answering(listener, Report([GRPC], lambda: asked.is_ready, asked.exposition)):
            loops.set_result(asyncio.get_running_loop())
            await over.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(serve())

    with ThreadPoolExecutor(1) as threads:
        serving = threads.submit(run)
        loop = loops.result()
        yield
        loop.call_soon_threadsafe(over.set)
        serving.result()


# uvloop, which the service runs on, treats closed connections differently.
@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    made: Callable[[], asyncio.AbstractEventLoop] = request.param
    return made


@pytest.fixture
def asked(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Asked]:
    made = Asked()
    with served(made, new_loop):
        yield made


@pytest.fixture
def in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "CONNECTION_SECONDS", SHORT_SECONDS)


async def test_health_says_the_status_and_which_server_it_is(asked: Asked) -> None:
    for is_ready, code, word in ((True, 200, "SERVING"), (False, 503, "NOT_SERVING")):
        asked.is_ready = is_ready
        got, headers, body = parts(await asked.get("/healthz/ready"))
        assert (got, json.loads(body)) == (code, {"status": word, "listen": [GRPC]})
        assert headers["content-type"] == "application/json"
        assert headers["connection"] == "close"
        got, _, body = parts(await asked.get("/healthz/live"))
        assert (got, json.loads(body)) == (200, {"status": "SERVING", "listen": [GRPC]})


async def test_metrics_are_in_the_text_format(asked: Asked) -> None:
    code, headers, body = parts(await asked.get("/metrics?of=anything"))
    assert (code, body) == (200, b"a 1\n")
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_head_is_get_without_the_body(asked: Asked) -> None:
    code, headers, body = parts(await asked.ask(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert (code, headers["content-length"], body) == (200, "4", b"")


async def test_other_paths_are_not_found(asked: Asked) -> None:
    for path in ("/", "/healthz", "/metrics/", "//metrics", "/healthz/ready%00", "http://x/metrics"):
        assert status(await asked.get(path)) == 404


async def test_other_methods_are_not_allowed_and_hear_so_however_much_they_send(asked: Asked) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "GETS", "get"):
        request = f"{method} /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        code, headers, _ = parts(await asked.ask(request.encode() + b"x" * 1_000_000))
        assert (code, headers["allow"]) == (405, "get, head")
    assert not asked.made


async def test_who_sends_all_before_reading_anything_is_answered(asked: Asked) -> None:
    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", asked.port)) as client:
            client.sendall(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n")
            client.sendall(b"x" * 30_000_000)
            return client.recv(12)

    assert await asyncio.to_thread(ask) == b"HTTP/1.1 405"


async def test_one_connection_gets_one_answer(asked: Asked) -> None:
    request = b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n"
    assert (await asked.ask(request * 3)).count(b"HTTP/1.1 200") == 1


def head_of(size: int) -> bytes:
    frame = b"GET /healthz/live HTTP/1.1\r\nHost: x\r\nPadding: %s\r\n\r\n"
    return frame % (b"x" * (size - len(frame) + 2))


@pytest.mark.parametrize(
    ("size", "code"), [(MAX_HEAD_BYTES, 200), (MAX_HEAD_BYTES + 1, 431), (3_000_000, 431)]
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_request_head_may_have_4_kib(asked: Asked, size: int, code: int, at_once: bool) -> None:
    head = head_of(size)
    assert len(head) == size
    async with contextlib.aclosing(await asked.connect()) as peer:
        if not at_once:
            peer.writer.write(head[:100])
            await asyncio.sleep(0.01)
            head = head[100:]
        peer.writer.write(head)
        assert status(await peer.rest()) == code


@pytest.mark.parametrize(
    ("nonsense", "code"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
    ],
    ids=["HTTP/2", "TLS", "no path"],
)
async def test_who_speaks_something_else_is_told_so(asked: Asked, nonsense: bytes, code: int) -> None:
    assert status(await asked.ask(nonsense)) == code


async def test_who_has_closed_one_half_gets_the_whole_answer(asked: Asked) -> None:
    asked.texts = ["x" * 20_000_000]
    async with contextlib.aclosing(await asked.connect()) as peer:
        peer.writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        peer.writer.write_eof()
        code, _, body = parts(await peer.rest())
        assert (code, len(body)) == (200, 20_000_000)


@pytest.mark.parametrize("said", [b"", b"GET /healthz/live HTTP/1.1\r\n"])
async def test_who_has_closed_one_half_too_early_is_done_with(asked: Asked, said: bytes) -> None:
    async with contextlib.aclosing(await asked.connect()) as peer:
        peer.writer.write(said)
        peer.writer.write_eof()
        with capture_logs() as lines:
            answer = await peer.rest()
        assert not answer or status(answer) == 400
        assert not lines


@pytest.mark.usefixtures("in_short")
@pytest.mark.parametrize("said", [b"", b"GET /healthz/live HTTP/1.1\r\nHost:"])
async def test_a_request_that_does_not_come_is_not_waited_for(asked: Asked, said: bytes) -> None:
    async with contextlib.aclosing(await asked.connect()) as peer:
        peer.writer.write(said)
        assert await peer.rest() == b""


@pytest.mark.usefixtures("in_short")
async def test_a_request_that_comes_byte_by_byte_gets_no_more_time(asked: Asked) -> None:
    async with contextlib.aclosing(await asked.connect()) as peer:
        ended = asyncio.create_task(peer.rest())
        while not ended.done():  # it sends all the time
            peer.writer.write(b"G")
            await asyncio.sleep(0.01)
        assert await ended == b""


@contextlib.asynccontextmanager
async def stalled(asked: Asked, count: int) -> AsyncIterator[dict["asyncio.Task[bytes]", Peer]]:
    """Connections that have said half a request, by what comes back."""
    async with contextlib.AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(contextlib.aclosing(await asked.connect())) for _ in range(count)
        ]
        for peer in peers:
            peer.writer.write(b"GET /healthz/live HTTP/1.1\r\n")
        yield {asyncio.create_task(peer.rest()): peer for peer in peers}


@pytest.mark.parametrize("more", [1, 100])
async def test_more_than_16_connections_are_closed_and_the_others_stay(asked: Asked, more: int) -> None:
    async with stalled(asked, MAX_CONNECTIONS + more) as peers:
        stay = set(peers)
        while len(stay) > MAX_CONNECTIONS:
            ended, stay = await asyncio.wait(stay, return_when=asyncio.FIRST_COMPLETED)
            assert {task.result() for task in ended} == {b""}
        assert await asked.get("/healthz/live") == b""
        for task in stay:
            peers[task].writer.write(b"Host: x\r\n\r\n")
            assert status(await task) == 200
            await peers[task].aclose()
        assert len(stay) == MAX_CONNECTIONS
        while not (answer := await asked.get("/healthz/live")):
            pass  # it has not seen yet that they are gone
        assert status(answer) == 200


@pytest.mark.usefixtures("in_short")
async def test_connections_that_do_nothing_make_room_by_themselves(asked: Asked) -> None:
    async with stalled(asked, MAX_CONNECTIONS + 1) as peers:
        assert await asyncio.gather(*peers) == [b""] * (MAX_CONNECTIONS + 1)
        assert status(await asked.get("/healthz/live")) == 200


@pytest.mark.usefixtures("in_short")
async def test_an_answer_that_is_not_read_is_given_up(asked: Asked) -> None:
    asked.texts = ["x" * 50_000_000]
    async with contextlib.aclosing(await asked.connect()) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a ReadTransport, too
        peer.writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(SHORT_SECONDS * 2)
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await peer.rest()) < 50_000_000


async def test_whoever_asks_at_once_shares_the_metrics(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FRESH_SECONDS", 0.2)
    asked.texts = ["a 1\n", "a 2\n"]
    answers = await asyncio.gather(*(asked.get("/metrics") for _ in range(8)))
    assert {parts(answer)[2] for answer in answers} == {b"a 1\n"}
    await asyncio.sleep(0.2)
    assert parts(await asked.get("/metrics"))[2] == b"a 2\n"
    assert asked.made == 2


async def test_metrics_that_cannot_be_made_are_said_to_be_so_and_harm_nothing_else(asked: Asked) -> None:
    asked.texts = []
    with capture_logs() as lines:
        assert await asked.get("/metrics") == b""
    assert [line["event"] for line in lines] == ["the endpoint could not answer"]
    assert status(await asked.get("/healthz/live")) == 200


async def test_who_leaves_is_nobodys_business(asked: Asked) -> None:
    with capture_logs() as lines:
        for said in (b"", b"GET /healthz/live HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
            peers = [await asked.connect() for _ in range(MAX_CONNECTIONS)]
            for peer in peers:
                reset_when_closed = struct.pack("ii", 1, 0)
                peer.writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, reset_when_closed
                )
                peer.writer.write(said)
                await peer.aclose()
            while not await asked.get("/healthz/live"):
                pass  # it has not seen yet that they are gone
    assert not lines


async def test_the_end_waits_for_nobody_and_is_quiet(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(endpoint, "CONNECTION_SECONDS", READ_SECONDS * 2)
    asked = Asked(takes_seconds=READ_SECONDS * 2)
    async with contextlib.AsyncExitStack() as stack:
        with capture_logs() as lines, served(asked, new_loop):
            waits = asyncio.create_task(asked.get("/metrics"))
            while not asked.made:  # noqa: ASYNC110  # in another thread
                await asyncio.sleep(0.01)
            peers = await stack.enter_async_context(stalled(asked, MAX_CONNECTIONS))
            await asyncio.wait(peers, return_when=asyncio.FIRST_COMPLETED)
        assert await asyncio.gather(*peers, waits) == [b""] * (MAX_CONNECTIONS + 1)
        assert [*lines, *caplog.records] == []
        with pytest.raises(ConnectionError):
            await asked.connect()


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield f"127.0.0.1:{holder.getsockname()[1]}"


def test_an_address_that_was_asked_for_and_is_taken_is_refused(taken: str) -> None:
    with pytest.raises(CannotListen) as refused:
        bound(Settings(metrics_listen=taken))
    assert str(refused.value) == f"cannot listen on {taken} (DP_METRICS_LISTEN): Address already in use"


def test_an_address_is_taken_as_soon_as_it_is_bound() -> None:
    with listening.alone("127.0.0.1:0", "DP_METRICS_LISTEN") as one:
        address = f"127.0.0.1:{one.getsockname()[1]}"
        with pytest.raises(CannotListen):
            listening.alone(address, "DP_METRICS_LISTEN")


def test_the_default_address_is_done_without_if_it_is_taken() -> None:
    default = Settings().metrics_listen
    with socket.socket() as holder, capture_logs() as lines:
        with contextlib.suppress(OSError):  # then somebody else has taken it
            holder.bind(("127.0.0.1", int(default.rpartition(":")[2])))
            holder.listen()
        assert bound(Settings()) is None
    [line] = lines
    assert line["log_level"] == "warning"
    assert f"cannot listen on {default}" in line["error"]


def test_an_empty_address_is_no_endpoint() -> None:
    assert bound(Settings(metrics_listen="")) is None
