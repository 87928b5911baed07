"""A commit that waits for a standby which does not answer is no OK."""

import asyncio

import grpc
import psycopg
import pytest

from deployment_pipeline.postgres.migrate import migrate
from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import Refused, TypedClient
from support.replication import Postgres
from support.stores import scratch_folder


@pytest.mark.proof
@pytest.mark.parametrize("how", ["cancel", "terminate"])
async def test_d1_a_commit_whose_wait_for_the_standby_is_cut_short_is_no_ok(
    settings: Settings, how: str
) -> None:
    with scratch_folder() as folder:
        postgres = Postgres(folder / "postgres")
        try:
            migrate(postgres.url)
            async with (
                running(settings.model_copy(update={"database_url": postgres.url})) as [served],
                grpc.aio.insecure_channel(served.address) as channel,
            ):
                client = TypedClient(channel)
                await client.call("CreatePipeline", name="shop", stages=["a"])
                with psycopg.connect(postgres.url, autocommit=True) as sql:
                    sql.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
                    sql.execute("SELECT pg_reload_conf()")
                    call = asyncio.create_task(
                        client.call(
                            "TriggerDeployment",
                            pipeline_name="shop",
                            version="1",
                            request_id="r",
                            timeout=3,
                        )
                    )
                    cancelled = 0
                    for _ in range(200):
                        await asyncio.sleep(0.02)
                        cancelled = sql.execute(
                            f"SELECT pg_{how}_backend(pid) FROM pg_stat_activity"
                            " WHERE wait_event = 'SyncRep'".encode()
                        ).rowcount
                        if cancelled:
                            break
                    assert cancelled, "it waits for the standby"
                    with pytest.raises(Refused) as refused:
                        await call
                    if how == "cancel":
                        assert refused.value.reason == "OUTCOME_UNKNOWN"
                    else:  # the service asks again, and that waits for the standby, too
                        assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
                    sql.execute("ALTER SYSTEM RESET synchronous_standby_names")
                    sql.execute("SELECT pg_reload_conf()")
        finally:
            postgres.stop()
