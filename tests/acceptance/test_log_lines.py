"""What the service writes to its log, and that it serves on when the log cannot be written."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import grpc
import pytest

from deployment_pipeline.release import VERSION
from support.clients import Refused, TypedClient
from support.pipes import fill
from support.servers import START_SECONDS, STOP_SECONDS, Server, free_address, lines, server
from support.steps import refusal, trigger
from support.stores import Stores, scratch_folder

CALLERS = 200
# So many lines are more than a pipe holds, and so many more than the queue takes, too.
CALLS = 1000
MANY_CALLS = 5000

LOGGED = {
    "TriggerDeployment": {"pipeline_name", "deployment_id", "version", "stage", "status", "request_id"},
    "GetPipeline": {"pipeline_name"},
}


async def test_each_call_is_one_json_line_that_says_what_it_was_about(
    stores: Stores, pipeline: str, log: TextIO
) -> None:
    with server(stores, log=log) as running:
        async with grpc.aio.insecure_channel(running.address) as channel:
            client = TypedClient(channel)
            for _ in range(2):
                await trigger(client, pipeline, request_id="r")
            trace = "4bf92f3577b34da6a3ce929d0e0e4736"
            of_a_mesh = [("x-request-id", "r" * 16), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01")]
            await client.call("GetPipeline", name=pipeline, metadata=of_a_mesh)
            await refusal(client.call("CreatePipeline", name="\x00\u202e\n", stages=["\x1b"]))
        assert running.stop() == 0
    calls = [line for line in lines(log) if line["event"] == "call"]
    assert [call["code"] for call in calls] == ["OK", "OK", "OK", "INVALID_ARGUMENT"]
    for call in calls[:3]:
        assert LOGGED[call["method"]] <= set(call)
    assert [call.get("replayed", False) for call in calls[:2]] == [False, True]
    assert (calls[2]["attempt_id"], calls[2]["trace_id"]) == ("r" * 16, trace)
    assert "attempt_id" not in calls[3]
    assert calls[3]["refusal"]["reason"] == "INVALID_FIELD"


async def test_a_line_says_at_every_level_where_it_serves(stores: Stores, log: TextIO) -> None:
    with server(stores, {"DP_LOG_LEVEL": "error"}, log) as running:
        running.stop()
    [line, warning] = lines(log)
    assert warning["level"] == "warning"
    assert line.pop("timestamp").endswith("Z")
    assert {name: line.pop(name) for name in ("event", "level", "version", "listen", "metrics")} == {
        "event": "serving",
        "level": "info",
        "version": VERSION,
        "listen": running.address,
        "metrics": running.metrics_address,
    }
    assert set(line) == {"postgres", "redis"}


class Greeting(Server):
    arguments = ("serve", "--embedded")


async def test_a_first_try_is_greeted_on_standard_output(stores: Stores) -> None:
    own = {"DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": stores.redis_url}
    with scratch_folder() as folder, (folder / "log").open("a+") as output:
        running = Greeting({**own, "DP_DATA_DIR": str(folder)}, output)
        try:
            assert running.stop() == 0
        finally:
            running.process.kill()
        output.seek(0)
        text = output.read()
    assert f"deployment-pipeline serves gRPC on {running.address}\n" in text
    assert f"http://{running.address}/dp.v1.DeploymentPipeline/CreatePipeline" in text
    assert text.rstrip().splitlines().count("Ctrl-C stops it.") == 1


class Unread(Server):
    """Standard error is a pipe, of which nobody reads more than the line that says where it serves."""

    def start(self) -> None:
        self.reader, writer = os.pipe()
        self.launch(subprocess.DEVNULL, writer)
        os.close(writer)
        self.read = b""
        while not self.read.endswith(b"\n"):
            self.read += os.read(self.reader, 1)
        self.address = json.loads(self.read)["listen"]

    def rest(self) -> list[dict[str, Any]]:
        """The lines of a process that ends while they are read."""
        with open(self.reader, "rb") as file:
            return [json.loads(line) for line in file.read().splitlines()]


@contextlib.contextmanager
def unread(stores: Stores) -> Iterator[Unread]:
    running = Unread({"DP_DATABASE_URL": stores.database_url, "DP_REDIS_URL": stores.redis_url})
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop(signal.SIGKILL)


async def make_calls(address: str, count: int) -> None:
    """None of them fails or hangs."""
    async with grpc.aio.insecure_channel(address) as channel:
        client = TypedClient(channel)

        async def caller() -> None:
            for _ in range(count // CALLERS):
                refused = await refusal(client.call("GetPipeline", name=""))
                assert refused.reason == "INVALID_FIELD"

        await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def test_nothing_waits_for_a_log_that_nobody_reads(stores: Stores) -> None:
    with unread(stores) as running:
        await make_calls(running.address, CALLS)
        assert await asyncio.to_thread(running.stop) == 0
        assert 0 < len(running.rest()) < CALLS


async def test_lost_lines_are_counted_once_somebody_reads_again(stores: Stores) -> None:
    with unread(stores) as running:
        await make_calls(running.address, MANY_CALLS)
        running.process.send_signal(signal.SIGTERM)
        written = await asyncio.to_thread(running.rest)
        assert await asyncio.to_thread(running.process.wait, STOP_SECONDS) == 0
    lost = [line["calls"] for line in written if line["event"] == "log lines were lost"]
    assert lost
    assert sum(line["event"] == "call" for line in written) + sum(lost) == MANY_CALLS
    assert "stopping" in [line["event"] for line in written], "such lines have a queue of their own"


@contextlib.contextmanager
def output(how: str) -> Iterator[str]:
    """The shell's words for both standard output and standard error that cannot be written."""
    match how:
        case "closed":
            yield ">&- 2>&-"
        case "a full disk":
            yield ">/dev/full 2>/dev/full"
        case _:
            reader, writer = os.pipe()
            os.set_inheritable(writer, True)
            if how == "a full pipe":
                fill(writer)
            else:
                os.close(reader)
            try:
                yield f">&{writer} 2>&{writer}"
            finally:
                os.close(writer)
                if how == "a full pipe":
                    os.close(reader)


@contextlib.contextmanager
def program(output: str, *arguments: str, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DP_")}
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" {output}', "-", sys.executable, "-m", "deployment_pipeline", *arguments],
        env={**environment, **settings},
        close_fds=False,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


HOW = ["closed", "a full disk", "a full pipe", "a pipe whose reader is gone"]


@pytest.mark.parametrize("how", HOW)
async def test_it_serves_whatever_its_output_is(stores: Stores, pipeline: str, how: str) -> None:
    own = {
        "DP_DATABASE_URL": stores.database_url,
        "DP_REDIS_URL": stores.redis_url,
        "DP_LISTEN": free_address(),
        "DP_METRICS_LISTEN": "127.0.0.1:0",
        "DP_DRAIN_MS": "0",
    }
    with (
        scratch_folder() as folder,
        output(how) as words,
        # It greets on standard output.
        program(words, "serve", "--embedded", DP_DATA_DIR=str(folder), **own) as it,
    ):
        async with grpc.aio.insecure_channel(own["DP_LISTEN"]) as channel:
            await asyncio.wait_for(channel.channel_ready(), START_SECONDS)
            client = TypedClient(channel)
            await trigger(client, pipeline)
            with pytest.raises(Refused, match="is busy"):
                await trigger(client, pipeline)
        if how == "closed":
            assert os.readlink(f"/proc/{it.pid}/fd/2") == os.devnull, "and no connection's"
        it.terminate()
        assert await asyncio.to_thread(it.wait, STOP_SECONDS) == 0


@pytest.mark.parametrize("how", HOW)
async def test_what_keeps_it_from_serving_ends_it_whatever_its_output_is(how: str) -> None:
    with output(how) as words, program(words, "serve") as it:
        assert await asyncio.to_thread(it.wait, STOP_SECONDS) == 2
