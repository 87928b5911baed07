"""What a supervisor learns from a worker over its lifeline."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from structlog.testing import capture_logs

from deployment_pipeline.run import lifeline
from deployment_pipeline.run.lifeline import MAX_UNANSWERED_READY, Lifeline, answer, say_serving
from deployment_pipeline.run.report import Report

SHORT_SECONDS = 0.1


@dataclass
class Worker:
    is_ready: bool = True
    text: str = "a 1\n"
    asked: int = 0
    fails: bool = False

    async def exposition(self) -> str:
        self.asked += 1
        if self.fails:
            raise ValueError
        return self.text


@dataclass
class Line:
    """Between a supervisor and a worker that says that it serves; whether it answers is up to the test."""

    ours: Lifeline
    fd: int
    worker: Worker

    @contextlib.asynccontextmanager
    async def answered(self) -> AsyncIterator[None]:
        report = Report([], lambda: self.worker.is_ready, self.worker.exposition)
        answering = asyncio.create_task(answer(self.fd, report))
        yield
        answering.cancel()

    @contextlib.asynccontextmanager
    async def heard(self) -> AsyncIterator[None]:
        """Whatever the worker says."""
        hearing = asyncio.create_task(self._hear())
        yield
        hearing.cancel()

    async def _hear(self) -> None:
        while await self.ours.hear():
            pass

    async def ask(self) -> None:
        self.ours.ask()
        async with asyncio.timeout(10):
            assert await self.ours.hear()


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    ours, theirs = await Lifeline.open()
    with theirs:
        say_serving(theirs.fileno())
        assert not ours.serves
        assert await ours.hear()
        yield Line(ours, theirs.fileno(), Worker())
    ours.close()


async def test_a_worker_that_says_that_it_serves_is_ready(line: Line) -> None:
    assert line.ours.serves
    assert line.ours.is_ready


async def test_readiness_is_what_it_answered_last(line: Line) -> None:
    async with line.answered():
        for is_ready in (False, True, False):
            line.worker.is_ready = is_ready
            await line.ask()
            assert line.ours.is_ready is is_ready
            assert line.ours.serves


async def test_one_that_leaves_questions_unanswered_is_not_ready_until_it_answers(line: Line) -> None:
    after = []
    for _ in range(MAX_UNANSWERED_READY + 1):
        line.ours.ask()
        after.append(line.ours.is_ready)
    assert after == [True] * MAX_UNANSWERED_READY + [False]
    async with line.answered():
        assert await line.ours.hear()
        assert line.ours.is_ready


async def test_metrics_come_whole_beside_the_other_answers(line: Line) -> None:
    line.worker.text = 'a{b="\\\\\\n\u2028"} 1\n' * 100_000  # far more than a socket holds
    async with line.answered(), line.heard():
        line.ours.ask()
        got, again = await asyncio.gather(line.ours.exposition(), line.ours.exposition())
        assert got == again == line.worker.text
        assert line.worker.asked == 1
        line.worker.text = "a 2\n"
        assert await line.ours.exposition() == "a 2\n"
        assert line.ours.is_ready


async def test_metrics_that_are_too_long_are_left_out(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "MAX_BYTES", 1000)
    line.worker.text = "x" * 1000
    async with line.answered(), line.heard():
        with capture_logs() as lines:
            assert await line.ours.exposition() == ""
        assert [entry["log_level"] for entry in lines] == ["error"]
        line.worker.text = "a 1\n"
        assert await line.ours.exposition() == "a 1\n"


async def test_metrics_that_cannot_be_made_are_left_out(line: Line) -> None:
    async with line.answered(), line.heard():
        line.worker.fails = True
        with capture_logs() as lines:
            assert await line.ours.exposition() == ""
        assert [entry["log_level"] for entry in lines] == ["error"]
        line.worker.fails = False
        assert await line.ours.exposition() == line.worker.text


async def test_one_that_hangs_has_no_metrics_and_is_asked_once(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifeline, "METRICS_SECONDS", SHORT_SECONDS)
    async with line.heard():
        assert await line.ours.exposition() is None
        assert await line.ours.exposition() is None
        async with line.answered():
            monkeypatch.undo()
            assert await line.ours.exposition() == line.worker.text
            assert line.worker.asked == 1


async def test_one_that_ends_serves_no_more_and_nobody_waits_for_it() -> None:
    ours, theirs = await Lifeline.open()
    with theirs:
        say_serving(theirs.fileno())
        assert await ours.hear()
        asking = asyncio.create_task(ours.exposition())
        await asyncio.sleep(0)
    assert not await ours.hear()
    assert not ours.serves
    async with asyncio.timeout(1):
        assert await asking is None
    ours.close()
