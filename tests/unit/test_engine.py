"""What no caller can provoke: a bug in the store."""

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from deployment_pipeline.commands import TriggerDeployment
from deployment_pipeline.engine.admission import Admission
from deployment_pipeline.engine.finishing import Finishing
from deployment_pipeline.engine.triggers import Triggers
from deployment_pipeline.guard.lease import Lease, Passage


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
