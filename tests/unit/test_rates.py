"""How many calls a second somebody may send."""

import pytest

from deployment_pipeline.edge import rates
from deployment_pipeline.edge.rates import Rates


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rates, "time", clock)
    return clock


def taken(limits: Rates, key: str, tries: int) -> int:
    return sum(limits.take(key) == 0 for _ in range(tries))


def test_a_burst_is_taken_and_then_the_rate(clock: Clock) -> None:
    limits = Rates(10, burst=5)
    assert taken(limits, "a", 20) == 5
    for _ in range(30):
        clock.now += 0.1001
        assert taken(limits, "a", 3) == 1
    clock.now += 60
    assert taken(limits, "a", 20) == 5


def test_whoever_waits_as_long_as_told_is_served(clock: Clock) -> None:
    limits = Rates(10, burst=1)
    assert limits.take("a") == 0
    wait = limits.take("a")
    assert wait == pytest.approx(0.1)
    clock.now += wait / 2
    assert limits.take("a") == pytest.approx(wait / 2)
    clock.now += wait / 2
    assert limits.take("a") == 0


def test_everybody_has_a_bucket_of_their_own(clock: Clock) -> None:
    limits = Rates(1, burst=1)
    assert limits.take("a") == 0
    assert limits.take("a") > 0
    assert limits.take("b") == 0


def test_a_flood_of_keys_takes_no_more_memory_and_frees_nobody_who_is_still_over(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "MAX_KEYS", 100)
    limits = Rates(1, burst=1)
    for number in range(1000):
        limits.take(str(number))
        assert len(limits._full_at) <= 100
    assert limits.take("999") > 0
    clock.now += 2
    limits.take("new")
    assert list(limits._full_at) == ["new"]
