"""Every fault: it struck, everything recovered (L1, L3), and nothing that was promised is broken."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest

from support.faults import FAULTS, Fault
from support.rig import Rig
from support.table import SEEDS, TABLE, Line

# A fault is aimed at a moment of the workload, and may miss it.
TRIES = 10


def every_fault() -> Iterator[Any]:
    for fault in FAULTS:
        for seed in range(SEEDS):
            marks = () if fault.quick and seed == 0 else pytest.mark.proof
            yield pytest.param(fault, seed, id=f"{fault.name}-{seed}", marks=marks)


@pytest.mark.parametrize(("fault", "seed"), list(every_fault()))
async def test_s_d_o_i_l_hold_under(fault: Fault, seed: int, shared_rig: Rig) -> None:
    line = TABLE.setdefault(fault.name, Line())
    line.seeds += 1
    rng = random.Random(f"{fault.name} {seed}")  # noqa: S311  # to be the same next time
    for _ in range(TRIES):
        pipelines = await shared_rig.new_pipelines()
        before = len(shared_rig.history.records)
        work = shared_rig.work(pipelines, rng, **fault.callers(rng))
        _, reached = await asyncio.gather(work, fault.inject(shared_rig, rng))
        shared_rig.heal()
        if fault.struck:
            reached = sum(map(fault.struck, shared_rig.history.records[before:]))
        try:
            await shared_rig.recover(pipelines)
            shared_rig.check(pipelines, redis_sound=fault.redis_sound)
        except BaseException:
            line.violations += 1
            raise
        line.calls += len(shared_rig.history.records) - before
        line.reached += reached
        if reached:
            return
    pytest.fail(f"{fault.name} never reached its moment")
