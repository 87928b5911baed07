"""Whether calls cost the same on large tables: two databases, a lone caller on both in turn."""

import contextlib
from statistics import median

from benchmarks import load
from benchmarks.rig import STAGES, Rig
from dp.v1 import deployment_pipeline_pb2 as pb

PIPELINES = 2000
SMALL = 10_000
ROUND_SECONDS = 0.4
PAGE = 5  # there are no more on the small tables

FILL = """
    INSERT INTO dp_deployments (id, pipeline_name, seq, version, stages, stage_index, stage_entered_at,
                                status, created_at, started_at, completed_at, reason, labels)
    SELECT gen_random_uuid(), 'grown-' || n % {pipelines}, n / {pipelines} + 1, '1.0.' || n,
           '{{{stages}}}', {last}, array_fill(at, ARRAY[{last} + 1]), 'COMPLETED', at, at, at, '', '{{}}'
    FROM generate_series(0, {count} - 1) n, LATERAL (SELECT now() - make_interval(secs => {count} - n) AS at);
    INSERT INTO dp_events (pipeline_name, event_no, deployment_id, type, stage, from_status, to_status,
                           reason, request_id, created_at)
    SELECT pipeline_name, seq + 1, id, 'COMPLETE', stages[{last} + 1], 'IN_PROGRESS', 'COMPLETED',
           '', 'auto-' || id, completed_at
    FROM dp_deployments;
    ALTER TABLE dp_versions DROP CONSTRAINT dp_versions_pkey;
    INSERT INTO dp_versions (pipeline_name, version, completed_no, completed_id)
    SELECT pipeline_name, version, seq + 1, id FROM dp_deployments;
    ALTER TABLE dp_versions ADD PRIMARY KEY (pipeline_name, version);
    UPDATE dp_pipelines SET last_seq = {count} / {pipelines}, last_event_no = {count} / {pipelines} + 1
    WHERE name LIKE 'grown-%';
"""


def fill(rig: Rig, database: str, count: int) -> list[str]:
    """Load so many completed deployments. Returns the ids of some."""
    indexes = rig.sql(
        "SELECT indexname, indexdef FROM pg_indexes"
        " WHERE tablename IN ('dp_deployments', 'dp_events', 'dp_versions')"
        " AND indexname NOT IN (SELECT conname FROM pg_constraint)",
        database=database,
    )
    statements = FILL.format(count=count, pipelines=PIPELINES, stages=",".join(STAGES), last=len(STAGES) - 1)
    rig.sql(
        # Foreign keys hold by construction, and indexes are faster built than grown.
        "SET session_replication_role = replica; SET synchronous_commit = off;"
        "SET maintenance_work_mem = '512MB';"
        + "".join(f"DROP INDEX {name};" for name, _ in indexes)
        + statements
        + "".join(f"{definition};" for _, definition in indexes),
        database=database,
    )
    rig.sql("VACUUM ANALYZE", database=database)
    ids = rig.sql(
        "SELECT d.id::text FROM generate_series(1, 1000) n JOIN dp_deployments d"
        " ON d.pipeline_name = 'grown-' || n AND d.seq = 1 + n %% %s",
        count // PIPELINES,
        database=database,
    )
    return [str(id) for (id,) in ids]


async def ratios(rig: Rig, count: int, rounds: int) -> dict[str, float]:
    """What each call costs with so many deployments, divided by what it costs with SMALL."""
    latencies: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        tried = {}
        for name, size in (("small", SMALL), ("large", count)):
            rig.create_database(name)
            rig.create_pipelines("grown", PIPELINES, database=name)
            ids = fill(rig, name, size)
            server = stack.enter_context(rig.service(workers=1, database=name))
            tried[name] = (server.address, ids)
        for _ in range(rounds):
            for name, (address, ids) in tried.items():
                for call, median_ms in (await lone(address, ids)).items():
                    latencies.setdefault(call, {}).setdefault(name, []).append(median_ms)
    return {call: median(found["large"]) / median(found["small"]) for call, found in latencies.items()}


async def lone(address: str, ids: list[str]) -> dict[str, float]:
    """The median of each call, in milliseconds."""
    lives = load.Lives("grown", PIPELINES)
    await load.measure(address, lives, 1, 2 * ROUND_SECONDS)
    status = [pb.GetDeploymentStatusRequest(deployment_id=id) for id in ids]
    history = [pb.GetHistoryRequest(pipeline_name=f"grown-{n}", limit=PAGE) for n in range(PIPELINES)]
    return {
        **{call: median(latencies) for call, latencies in lives.latencies_ms.items()},
        "status": (await load.measure(address, load.calls(load.STATUS, status), 1, ROUND_SECONDS)).percentile(
            50
        ),
        "history": (
            await load.measure(address, load.calls(load.HISTORY, history), 1, ROUND_SECONDS)
        ).percentile(50),
    }
