import asyncio

import pytest

from deployment_pipeline.engine.turns import Attempt, Turns


class Busy(Exception):
    pass


class Bench:
    """Counts the attempts, and ends each when told to."""

    def __init__(self) -> None:
        self.turns: Turns[int] = Turns()
        self.attempts = 0
        self.waited: list[bool] = []
        self.under_way = 0
        self.gate = asyncio.Event()

    def take(self, *, shares: bool = True, patience: float = 60) -> asyncio.Task[int]:
        turn = self.turns.take("key", self.attempt, shares=shares, patience_seconds=patience)
        return asyncio.create_task(turn)

    async def attempt(self, this: Attempt[int]) -> None:
        self.attempts += 1
        number = self.attempts
        self.waited.append(this.waited)
        self.under_way += 1
        assert self.under_way == 1, "two attempts at once"
        await self.gate.wait()
        if number == 1:
            this.succeed(number, Busy())
        else:
            this.fail(Busy(), shared=True)
        self.under_way -= 1


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_herd_costs_two_attempts() -> None:
    bench = Bench()
    callers = [bench.take() for _ in range(1000)]
    bench.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert results.count(1) == 1
    assert sum(isinstance(result, Busy) for result in results) == 999
    assert bench.attempts == 2


async def test_who_comes_while_an_attempt_is_under_way_does_not_share_it() -> None:
    bench = Bench()
    leader = bench.take()
    await settle()
    late = bench.take()
    await settle()
    bench.gate.set()
    assert await leader == 1
    with pytest.raises(Busy):
        await late
    assert bench.waited == [False, True]


async def test_who_must_not_share_leads_by_itself() -> None:
    bench = Bench()
    bench.gate.set()
    callers = [bench.take(shares=False) for _ in range(10)]
    await asyncio.gather(*callers, return_exceptions=True)
    assert bench.attempts == 10


async def test_callers_that_come_one_by_one_while_others_wait_all_get_their_turn() -> None:
    bench = Bench()
    bench.gate.set()
    callers = []
    for _ in range(30):
        callers.append(bench.take(shares=False))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await asyncio.gather(*callers, return_exceptions=True)
    assert bench.attempts == 30


async def test_a_caller_whose_patience_ends_leaves_the_line() -> None:
    bench = Bench()
    leader = bench.take()
    await settle()
    impatient, patient = bench.take(shares=False, patience=0), bench.take(shares=False)
    with pytest.raises(TimeoutError):
        await impatient
    bench.gate.set()
    assert await leader == 1
    with pytest.raises(Busy):
        await patient
    assert bench.attempts == 2


async def test_a_caller_that_leaves_in_line_is_passed_over() -> None:
    bench = Bench()
    leader = bench.take()
    await settle()
    leaving, staying = bench.take(shares=False), bench.take(shares=False)
    await settle()
    leaving.cancel()
    bench.gate.set()
    assert await leader == 1
    with pytest.raises(Busy):
        await staying
    assert leaving.cancelled()


async def test_a_caller_that_leaves_just_as_its_turn_comes_passes_it_on() -> None:
    for passes in range(12):
        bench = Bench()
        leader = bench.take()
        await settle()
        leaving, staying = bench.take(shares=False), bench.take(shares=False)
        await settle()
        bench.gate.set()
        for _ in range(passes):
            await asyncio.sleep(0)
        leaving.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(leader, leaving, staying, return_exceptions=True)
        assert staying.done()
        await bench.turns.drain()
        await settle()
        assert await asyncio.wait_for(bench_once(bench), 5)


async def bench_once(bench: Bench) -> bool:
    """Whether the key is free again."""
    with pytest.raises(Busy):
        await bench.take()
    return True


async def test_an_attempt_outlives_its_caller() -> None:
    bench = Bench()
    leader = bench.take()
    await settle()
    leader.cancel()
    await settle()
    assert bench.under_way == 1
    bench.gate.set()
    await bench.turns.drain()
    assert (bench.attempts, bench.under_way) == (1, 0)


async def test_an_error_that_is_no_refusal_hits_the_leader_alone() -> None:
    turns: Turns[int] = Turns()
    attempts = 0

    async def attempt(this: Attempt[int]) -> None:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0)
        if attempts < 3:
            raise ZeroDivisionError
        this.succeed(attempts, Busy())

    callers = [turns.take("key", attempt, shares=True, patience_seconds=60) for _ in range(4)]
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError, ZeroDivisionError, int, Busy]
