"""The checkers find what is planted: a proof whose checks cannot fail proves nothing."""

import asyncio
import random
import re

import pytest

from deployment_pipeline.postgres.migrate import SQL
from support.clients import Refused
from support.faults import at
from support.rig import Rig, rig

TRIES = 12


def function(name: str) -> str:
    return (SQL / "functions" / f"{name}.sql").read_text()


def without_exclusivity(rig: Rig) -> None:
    """No partial unique index, and nobody locks the pipeline's row."""
    unlocked = re.sub("FOR NO KEY UPDATE( SKIP LOCKED)?", "", function("dp_row_lock"))
    assert unlocked != function("dp_row_lock")
    with rig.sql as sql:
        sql.execute("DROP INDEX dp_deployments_one_in_progress")
        sql.execute(unlocked.replace("BEGIN\n", "BEGIN PERFORM pg_sleep(0.005);\n").encode())


def without_replay(rig: Rig) -> None:
    """Nobody looks whether a request was carried out before."""
    with rig.sql as sql:
        sql.execute("DROP INDEX dp_events_request_id")
        for name in ("dp_trigger", "dp_find_deployment"):
            blind = function(name).replace("request_id = p_request_id", "request_id = p_request_id AND false")
            assert blind != function(name)
            sql.execute(blind.encode())


async def found(rig: Rig, *, copies: int = 1) -> bool:
    """Whether the checkers notice something within a few rounds of work."""
    rng = random.Random(7)  # noqa: S311  # to be the same next time
    for _ in range(TRIES):
        pipelines = await rig.new_pipelines()
        await rig.work(pipelines, rng, copies=lambda: copies)
        try:
            rig.check(pipelines, redis_sound=True)
        except AssertionError:
            return True
    return False


async def test_a_missing_index_and_a_missing_lock_are_found() -> None:
    async with rig() as broken:
        without_exclusivity(broken)
        assert await found(broken)


async def test_a_missing_look_for_repeats_is_found() -> None:
    async with rig() as broken:
        without_replay(broken)
        assert await found(broken, copies=3)


async def test_a_plain_nx_lock_in_the_place_of_the_guard_is_found() -> None:
    async with rig({"DP_TEST_GUARD": "plain-nx"}) as broken:
        rng = random.Random(7)  # noqa: S311
        pipelines = await broken.new_pipelines()
        with pytest.raises((AssertionError, Refused)):  # noqa: PT012  # which round finds it is open
            for _ in range(TRIES):
                work = broken.work(pipelines, rng)
                await asyncio.gather(work, at("trigger.after_gate", "kill", broken, rng))
                await broken.recover(pipelines)
                broken.check(pipelines, redis_sound=True)
