"""A commit that waits for a standby which does not answer is no OK."""

import asyncio

import grpc
import psycopg
import pytest

from deployment_pipeline.migrate import migrate
from deployment_pipeline.server import running
from deployment_pipeline.settings import Settings
from support.clients import Refused, TypedClient
from support.replication import Postgres
from support.stores import scratch_folder


async def test_d1_a_commit_whose_wait_for_the_standby_is_cancelled_is_unknown(settings: Settings) -> None:
    with scratch_folder() as folder:
        postgres = Postgres(folder / "postgres")
        try:
            migrate(postgres.url)
            async with (
                running(settings.model_copy(update={"database_url": postgres.url})) as port,
                grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            ):
                client = TypedClient(channel)
                await client.call("CreatePipeline", name="shop", stages=["a"])
                with psycopg.connect(postgres.url, autocommit=True) as sql:
                    sql.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
                    sql.execute("SELECT pg_reload_conf()")
                    call = asyncio.create_task(
                        client.call("TriggerDeployment", pipeline_name="shop", version="1", request_id="r")
                    )
                    cancelled = 0
                    for _ in range(200):
                        await asyncio.sleep(0.02)
                        cancelled = sql.execute(
                            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                        ).rowcount
                        if cancelled:
                            break
                    assert cancelled, "it waits for the standby"
                    with pytest.raises(Refused) as refused:
                        await call
                    assert refused.value.reason == "OUTCOME_UNKNOWN"
                    sql.execute("ALTER SYSTEM RESET synchronous_standby_names")
                    sql.execute("SELECT pg_reload_conf()")
        finally:
            postgres.stop()
