"""Steps that many tests take, with any client of the contract."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from support.clients import Answer, Client, Refused


async def trigger(client: Client, pipeline: str, version: str = "1", **fields: Any) -> Answer:
    return await client.call("TriggerDeployment", pipeline_name=pipeline, version=version, **fields)


async def queue(client: Client, pipeline: str, version: str = "1", **fields: Any) -> Answer:
    """Triggers a deployment that waits if another one is active."""
    return await trigger(client, pipeline, version, on_busy="QUEUE", **fields)


async def advance(client: Client, id: str, times: int = 1, **fields: Any) -> Answer:
    """Advances it that many times, and returns the last answer."""
    for _ in range(times - 1):
        await client.call("AdvanceStage", deployment_id=id, **fields)
    return await client.call("AdvanceStage", deployment_id=id, **fields)


async def complete(client: Client, id: str, stages: int = 3) -> Answer:
    """Advances it from the first of its stages through the last."""
    completed = await advance(client, id, stages)
    assert completed.status_name == "COMPLETED"
    return completed


async def cancel(client: Client, id: str, **fields: Any) -> Answer:
    return await client.call("CancelDeployment", deployment_id=id, **fields)


async def rollback(client: Client, id: str, **fields: Any) -> Answer:
    return await client.call("Rollback", deployment_id=id, **fields)


async def status(client: Client, id: str) -> Answer:
    return await client.call("GetDeploymentStatus", deployment_id=id)


async def refusal(call: Awaitable[Answer]) -> Refused:
    """Awaits a call that must be refused, and returns the refusal."""
    with pytest.raises(Refused) as refused:
        await call
    return refused.value


async def outcome(call: Awaitable[Answer]) -> Answer | Refused:
    """Awaits a call that may be refused, and returns its answer or the refusal."""
    try:
        return await call
    except Refused as refused:
        return refused


async def fill_history(client: Client, pipeline: str, deployments: int) -> None:
    """With as much text as there may be."""
    await client.call("CreatePipeline", name=pipeline, stages=["a"], max_pending=deployments)
    waiting = (queue(client, pipeline, str(n), reason="x" * 4096) for n in range(deployments))
    await asyncio.gather(*waiting)
