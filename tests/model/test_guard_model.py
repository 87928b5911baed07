"""Every interleaving of the guard's steps, with crashes, a FLUSHALL and a clock between any two."""

import pytest

from support.guard_model import NO_LEASE, T_C, Lease, PlainNX, Redis, TTLCache, explore


@pytest.mark.parametrize(
    ("triggers", "at_least"), [(2, 10_000), pytest.param(3, 300_000, marks=pytest.mark.proof)]
)
def test_s2_s3_l1_hold_in_every_state(triggers: int, at_least: int) -> None:
    states, broken = explore(Lease(), triggers)
    assert states > at_least
    assert not broken


def test_a_plain_nx_lock_breaks_them() -> None:
    _, broken = explore(PlainNX(), triggers=2)
    assert broken == {"S2", "S3", "L1"}


def test_a_cache_with_a_ttl_breaks_them() -> None:
    _, broken = explore(TTLCache(), triggers=2)
    assert broken == {"S2", "S3"}


@pytest.mark.proof
def test_a_tombstone_that_forgets_what_a_lease_knew_breaks_s3() -> None:
    class Forgetful(Lease):
        def end(self, redis: Redis, seq: int) -> Redis:
            kind, other, _, _ = redis.lease or NO_LEASE
            newest = max(seq, other) if kind == "T" else seq
            return Redis(0 if redis.active == seq else redis.active, ("T", newest, 0, T_C))

    _, broken = explore(Forgetful(), triggers=3)
    assert broken == {"S3"}


@pytest.mark.proof
def test_a_confirmation_that_cuts_a_tombstones_life_short_breaks_s3() -> None:
    class Short(Lease):
        def fill(self, redis: Redis, me: int, seq: int, t0: int) -> Redis:
            filled = super().fill(redis, me, seq, t0)
            if filled.lease and filled.lease[0] == "C":
                filled = filled._replace(lease=("C", seq, t0 + T_C, t0 + T_C))
            return filled

    _, broken = explore(Short(), triggers=3)
    assert broken == {"S3"}
