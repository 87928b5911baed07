"""Two installations may share a Redis: neither refuses because of the other, or shows anything of it."""

from collections.abc import AsyncIterator

import grpc
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from deployment_pipeline.postgres.migrate import migrate
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import Client, Refused, TypedClient


@pytest.fixture
async def other(settings: Settings, sql: psycopg.Connection) -> AsyncIterator[Client]:
    """A client of another installation: its own database, and the same Redis."""
    sql.execute("CREATE DATABASE dp_other_installation")
    url = make_conninfo(settings.database_url, dbname="dp_other_installation")
    migrate(url)
    async with (
        running(settings.model_copy(update={"database_url": url})) as [served],
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        yield TypedClient(channel)
    sql.execute("DROP DATABASE dp_other_installation WITH (FORCE)")


async def test_a_pipeline_of_the_same_name_elsewhere_is_in_nobodys_way(
    client: Client, other: Client, pipeline: str
) -> None:
    await other.call("CreatePipeline", name=pipeline, stages=["build", "test", "deploy"])
    ours = await client.call("TriggerDeployment", pipeline_name=pipeline, version="ours")
    for _ in range(3):  # as a CI job does that keeps asking: Redis refuses it
        with pytest.raises(Refused) as refused:
            await client.call("TriggerDeployment", pipeline_name=pipeline, version="again")
        assert refused.value.facts["deployment_id"] == ours.id
    theirs = await other.call("TriggerDeployment", pipeline_name=pipeline, version="theirs")
    assert theirs.status_name == "IN_PROGRESS"
    # An end over there leaves what is known here alone, and the other way round.
    await other.call("CancelDeployment", deployment_id=theirs.id)
    with pytest.raises(Refused) as refused:
        await client.call("TriggerDeployment", pipeline_name=pipeline, version="again")
    assert refused.value.facts["version"] == "ours"
    await client.call("CancelDeployment", deployment_id=ours.id)
    for caller in (client, other):
        made = await caller.call("TriggerDeployment", pipeline_name=pipeline, version="next")
        assert made.seq == 2
