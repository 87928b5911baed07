"""What no caller can provoke: a bug in the store."""

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deployment_pipeline import call
from deployment_pipeline.commands import TriggerDeployment
from deployment_pipeline.engine.admission import Admission
from deployment_pipeline.engine.finishing import Finishing
from deployment_pipeline.engine.triggers import Triggers
from deployment_pipeline.guard.lease import Lease, Passage
from deployment_pipeline.refusals import PipelineBusy


class Broken:
    """A store with a bug, and a guard whose lease stands or not."""

    def __init__(self, lease: Lease | None) -> None:
        self.lease = lease

    async def make(self, *_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    async def gate(self, *_: Any) -> Passage:
        return Passage(1, self.lease)

    async def release(self, *_: Any) -> None:
        pass


LEASE = Lease(1, uuid.uuid4(), 1, datetime.now(UTC), "a", "1")


# With a lease and without a request_id, the store is not asked.
@pytest.mark.parametrize(("lease", "request_id"), [(None, ""), (None, "r"), (LEASE, "r")])
async def test_l4_a_bug_reaches_its_caller(lease: Lease | None, request_id: str) -> None:
    broken: Any = Broken(lease)
    triggers = Triggers(Admission(requires_tokens=False), broken, broken, Finishing())
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(5):
            await triggers.trigger(
                TriggerDeployment(pipeline_name="shop", version="1", request_id=request_id)
            )


@pytest.mark.parametrize(("seconds", "error"), [(69, ZeroDivisionError), (71, PipelineBusy)])
async def test_redis_refuses_what_a_mesh_sent_only_because_of_what_is_too_old_to_be_its_own(
    seconds: int, error: type[Exception]
) -> None:
    """Whoever may have started what is active asks the store, which is broken here."""
    active_for = timedelta(seconds=seconds)
    # On Redis it is 0.001.
    broken: Any = Broken(replace(LEASE, since=datetime.fromtimestamp(0, UTC) - active_for))
    triggers = Triggers(Admission(requires_tokens=False), broken, broken, Finishing())
    call.begin(5, call.Attempt(id="0123456789abcdef"))
    with pytest.raises(error):
        await triggers.trigger(TriggerDeployment(pipeline_name="shop", version="1"))
