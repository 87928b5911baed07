"""What a supervisor does with workers that do not start, or do not answer."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from structlog.testing import capture_logs

from deployment_pipeline.edge.listeners import Listener, Mode
from deployment_pipeline.run import listening, workers
from deployment_pipeline.run.workers import CannotStart, supervise
from support.asking import asked, until_ready
from support.processes import all_gone
from support.servers import free_address
from support.stores import scratch_folder

Program: TypeAlias = Callable[[str], None]

# In a script, $4 is the worker's number, and $5 its lifeline.
SERVES = "echo serving >&$5"
ANSWERS = f"{SERVES}; while read -u $5 question; do echo alive >&$5; done"
HANGS = "exec sleep 60"


@pytest.fixture
async def program(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Program]:
    """Makes a script the program of the workers, and sees that none of them is left in the end."""
    monkeypatch.setattr(workers, "ASK_SECONDS", 0.25)
    monkeypatch.setattr(workers, "REPLACE_SECONDS", 0.1)
    monkeypatch.setattr(workers, "STOP_SECONDS", 0.5)
    with scratch_folder() as folder:
        file = folder / "program"

        def becomes(script: str) -> None:
            file.write_text(f"#!/bin/bash\necho $$ >> {folder}/pids\n{script}\n")
            file.chmod(0o755)
            monkeypatch.setattr(sys, "executable", str(file))

        yield becomes
        assert await all_gone(map(int, (folder / "pids").read_text().split()))


@pytest.fixture
def listeners() -> Sequence[Listener]:
    return [Listener(Mode.PLAIN, free_address())]


@pytest.mark.parametrize("script", ["exit 1", f"case $4 in 1) {ANSWERS};; 2) exit 1;; *) {HANGS};; esac"])
async def test_a_worker_that_cannot_start_ends_the_supervisor(
    program: Program, listeners: Sequence[Listener], script: str
) -> None:
    program(script)
    served: list[Sequence[Listener]] = []
    with pytest.raises(CannotStart):
        await supervise(3, listeners, os.environ, served.append)
    assert not served
    with socket.socket() as again:
        again.bind(("127.0.0.1", listeners[0].port))


async def test_a_worker_that_hangs_as_it_starts_is_killed(
    program: Program, listeners: Sequence[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "START_SECONDS", 0.5)
    program(HANGS)
    with pytest.raises(CannotStart, match="did not serve within"):
        await supervise(2, listeners, os.environ, lambda _: None)


async def test_a_worker_that_does_not_answer_is_killed_and_replaced_again_and_again(
    program: Program, listeners: Sequence[Listener]
) -> None:
    program(f"case $4 in 1) {ANSWERS};; *) {SERVES}; {HANGS};; esac")
    ready = asyncio.Event()
    with capture_logs() as lines:
        supervising = asyncio.create_task(supervise(2, listeners, os.environ, lambda _: ready.set()))
        await ready.wait()
        for _ in range(1000):
            if len(killed := [line for line in lines if "does not answer" in line["event"]]) > 1:
                break
            await asyncio.sleep(0.02)
        supervising.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervising
    assert {line["worker"] for line in killed} == {2}
    assert len({line["pid"] for line in killed}) == 2


async def test_all_that_serve_must_be_ready_and_at_least_one(
    program: Program, listeners: Sequence[Listener], tmp_path: Path
) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).write_text("ready\n")
    answers = f"while read -u $5 question; do cat {tmp_path}/$4 >&$5 || exit 1; done"
    program(f"[ -e {tmp_path}/$4 ] || {HANGS}; {SERVES}; {answers}")
    http = listening.alone("127.0.0.1:0", "DP_METRICS_LISTEN")
    where = f"127.0.0.1:{http.getsockname()[1]}"
    serving = asyncio.Event()
    supervising = asyncio.create_task(supervise(2, listeners, os.environ, lambda _: serving.set(), http))
    await serving.wait()
    answer = await asked(where, "/healthz/ready")
    assert (answer.status, answer.said) == (200, {"status": "SERVING", "listen": [listeners[0].address]})
    (tmp_path / "2").write_text("alive\n")
    await until_ready(where, ready=False)
    (tmp_path / "2").unlink()  # so it ends, and its replacement never serves
    await until_ready(where, ready=True)
    (tmp_path / "1").unlink()
    await until_ready(where, ready=False)
    assert (await asked(where, "/healthz/live")).status == 200
    supervising.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await supervising
    with pytest.raises(ConnectionError):
        await asked(where, "/healthz/live")


async def test_a_supervisor_that_stops_is_not_ready_though_its_workers_still_say_so(
    program: Program, listeners: Sequence[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "STOP_SECONDS", 2.0)
    program(f"trap '' TERM; {SERVES}; while read -u $5 question; do echo ready >&$5; done")
    http = listening.alone("127.0.0.1:0", "DP_METRICS_LISTEN")
    where = f"127.0.0.1:{http.getsockname()[1]}"
    serving = asyncio.Event()
    supervising = asyncio.create_task(supervise(1, listeners, os.environ, lambda _: serving.set(), http))
    await serving.wait()
    assert (await asked(where, "/healthz/ready")).status == 200
    supervising.cancel()
    await asyncio.sleep(0)
    assert (await asked(where, "/healthz/ready")).status == 503
    with contextlib.suppress(asyncio.CancelledError):
        await supervising
