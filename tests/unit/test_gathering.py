"""Gathering: who shares a round trip, and what each gets of it."""

import asyncio
from collections.abc import Sequence

import pytest

from deployment_pipeline.gathering import QUIET_STEPS, STEPS, Gathering


class Store:
    """Answers n with -n when it is let go; odd numbers beyond 100 with an error."""

    def __init__(self, most: int = 64) -> None:
        self.batches: list[list[int]] = []
        self.gates: list[asyncio.Event] = []
        self.gathering = Gathering(self.send, most)

    async def send(self, questions: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(questions))
        self.gates.append(asyncio.Event())
        await self.gates[-1].wait()
        if -1 in questions:
            raise ConnectionError
        return [ValueError(str(n)) if n > 100 and n % 2 else -n for n in questions]

    def let_go(self, number: int) -> None:
        self.gates[number].set()


async def settle(steps: int = QUIET_STEPS + 5) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)


async def test_a_lone_question_is_sent_at_once() -> None:
    store = Store()
    answer = store.gathering.ask(7)
    await settle()
    assert store.batches == [[7]]
    store.let_go(0)
    assert await answer == -7


async def test_what_comes_in_one_step_goes_together() -> None:
    store = Store()
    for n in range(5):
        store.gathering.ask(n)
    await settle()
    assert store.batches == [[0, 1, 2, 3, 4]]


async def test_a_batch_that_hangs_holds_up_no_more_than_a_crowd() -> None:
    store = Store()
    for n in range(2):
        store.gathering.ask(n)
    await settle()
    for n in range(2, 9):
        store.gathering.ask(n)
        await settle()
    assert store.batches == [[0, 1]], "seven wait behind two"
    store.gathering.ask(9)
    await settle()
    assert store.batches == [[0, 1], [2, 3, 4, 5, 6, 7, 8, 9]]


async def test_the_next_batch_goes_when_the_one_before_is_back() -> None:
    store = Store()
    for n in range(3):
        store.gathering.ask(n)
    await settle()
    waiting = store.gathering.ask(3)
    store.let_go(0)
    await settle()
    assert store.batches == [[0, 1, 2], [3]]
    store.let_go(1)
    assert await waiting == -3


async def test_company_gives_the_next_batch_some_steps_to_collect() -> None:
    store = Store()
    for n in range(2):
        store.gathering.ask(n)
    await settle()
    store.gathering.ask(2)
    store.let_go(0)
    await settle(5)
    assert store.batches == [[0, 1]]
    store.gathering.ask(3)
    await settle()
    assert store.batches == [[0, 1], [2, 3]]


async def test_they_collect_until_nobody_comes() -> None:
    store = Store()
    for n in range(2):
        store.gathering.ask(n)
    await settle()
    store.let_go(0)
    for n in range(2, 8):
        await settle(QUIET_STEPS // 2)
        store.gathering.ask(n)
    assert store.batches == [[0, 1]]
    await settle()
    assert store.batches == [[0, 1], [2, 3, 4, 5, 6, 7]]


async def echo(questions: Sequence[int]) -> Sequence[int]:
    return questions


async def test_company_that_never_ends_keeps_nobody_for_longer_than_the_steps() -> None:
    gathering = Gathering(echo, 64)
    for n in range(20):  # only a crowd of 64 could go before they are forgotten
        gathering.ask(n)
    waiting: dict[int, asyncio.Future[int]] = {}
    for step in range(10 * STEPS):
        if step % (QUIET_STEPS - 1) == 0:
            waiting[step] = gathering.ask(step)
        await asyncio.sleep(0)
        waiting = {n: answer for n, answer in waiting.items() if not answer.done()}
        assert all(step - asked < STEPS + 10 for asked in waiting)


async def test_an_endless_stream_keeps_no_batch_that_is_answered() -> None:
    gathering = Gathering(echo, 64)
    before = len(asyncio.all_tasks())
    for n in range(5000):
        gathering.ask(n)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) - before < 5


async def test_after_a_lone_question_nobody_waits() -> None:
    store = Store()
    answer = store.gathering.ask(0)
    await settle()
    store.let_go(0)
    await answer
    store.gathering.ask(1)
    await settle(5)
    assert store.batches == [[0], [1]]


async def test_a_batch_has_its_limit() -> None:
    store = Store(most=2)
    for n in range(5):
        store.gathering.ask(n)
    await settle()
    assert store.batches == [[0, 1], [2, 3]], "the fifth waits: it is one, and four are under way"
    store.let_go(0)
    store.let_go(1)
    await settle()
    assert store.batches == [[0, 1], [2, 3], [4]]


async def test_each_has_its_own_answer_or_error() -> None:
    store = Store()
    answers = [store.gathering.ask(n) for n in (100, 101, 102)]
    await settle()
    store.let_go(0)
    assert await answers[0] == -100
    with pytest.raises(ValueError, match="101"):
        await answers[1]
    assert await answers[2] == -102


async def test_an_error_of_the_batch_is_everyones() -> None:
    store = Store()
    answers = [store.gathering.ask(n) for n in (1, -1)]
    await settle()
    store.let_go(0)
    for answer in answers:
        with pytest.raises(ConnectionError):
            await answer
    again = store.gathering.ask(2)
    await settle()
    store.let_go(1)
    assert await again == -2, "it goes on"


async def test_who_has_left_is_not_sent_and_harms_nobody() -> None:
    store = Store()
    first = store.gathering.ask(0)
    await settle()
    gone, stays = store.gathering.ask(1), store.gathering.ask(2)
    gone.cancel()
    first.cancel()
    store.let_go(0)
    await settle()
    assert store.batches == [[0], [2]]
    store.let_go(1)
    assert await stays == -2
