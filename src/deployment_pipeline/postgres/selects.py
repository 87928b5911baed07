"""The statements of what can be read, each of one snapshot. `reads` asks them."""

from deployment_pipeline.postgres.shapes import EVENT, PIPELINE, QUEUEABLE, STAGE_STATE
from deployment_pipeline.postgres.statements import Statement

# How many deployments a page looks at when no index serves its filter.
WALK = 10_000

_DEPLOYMENT = QUEUEABLE.columns("d", waiting="w")

INSTALLATION = Statement("SELECT id, page_token_key, min_level FROM dp_installation", {})
GET_PIPELINE = Statement(
    f"SELECT {PIPELINE.columns('p')} FROM dp_pipelines p WHERE p.name = q.name", {"name": "text"}
)
# Each range of names is walked by the index on its own: who may see little reads little. They are walked in
# their order, and no further than the page: who may see a thousand ranges does not read a page of each.
LIST_PIPELINES = Statement(
    f"""
    SELECT {PIPELINE.columns("(s.p)")}, s.found
    FROM (
        SELECT p, name, count(*) OVER () AS found, sum(bytes) OVER (ORDER BY name) - bytes AS bytes_before
        FROM (
            SELECT p, name, dp_pipeline_bytes(p) AS bytes
            FROM (
                SELECT low COLLATE "C" AS low, high FROM unnest(q.lows, q.highs) r (low, high)
                WHERE high COLLATE "C" > q.after ORDER BY 1
            ) r CROSS JOIN LATERAL (
                SELECT p, name FROM dp_pipelines p WHERE name > q.after AND name >= r.low AND name < r.high
                ORDER BY name LIMIT q.most
            ) ranged
            ORDER BY r.low, name LIMIT q.most
        ) p
    ) s
    WHERE s.bytes_before < q.bytes ORDER BY s.name
    """,
    {"lows": "text[]", "highs": "text[]", "after": "text", "most": "integer", "bytes": "bigint"},
)
PIPELINE_OF = Statement("SELECT d.pipeline_name FROM dp_deployments d WHERE d.id = q.id", {"id": "uuid"})
GET_DEPLOYMENT = Statement(
    f"""
    SELECT {_DEPLOYMENT} FROM dp_deployments d
    LEFT JOIN LATERAL (
        SELECT * FROM dp_waiting_for(d.pipeline_name, d.seq) -- called only for those that wait
        WHERE d.status = 'PENDING'
    ) w ON true
    WHERE d.id = q.id
    """,
    {"id": "uuid"},
)

# What a PENDING deployment d of the pipeline p waits for, if its place in line is known.
_IN_THE_WAY = """
    LEFT JOIN dp_deployments active ON active.pipeline_name = p.name AND active.status = 'IN_PROGRESS'
    LEFT JOIN LATERAL (
        SELECT p.lock_owner, p.lock_reason, p.lock_expires_at WHERE dp_is_locked(p, clock_timestamp())
    ) l ON true
"""
# Each of them says why the pipeline is locked.
_BYTES = "(dp_bytes(d) + coalesce(octet_length(l.lock_reason), 0))"
_WAITING = """
    LEFT JOIN LATERAL (
        SELECT {place} AS queue_position, active.id AS active_id, active.version AS active_version,
               active.current_stage AS active_stage, active.started_at AS active_since,
               l.lock_owner, l.lock_reason, l.lock_expires_at
        WHERE d.status = 'PENDING'
    ) w ON true
"""


def _history(found: str) -> str:
    """Newest first. found: a SELECT of the ids, newest first, and of where the walk stopped if it stopped
    before it was done. One row without a deployment when there is a pipeline and nothing to show; none when
    there is no pipeline. A page holds everything that waits between its first row and its last."""
    return f"""
        SELECT {_DEPLOYMENT}, cardinality(f.ids), f.stopped_at
        FROM dp_pipelines p {_IN_THE_WAY}
        CROSS JOIN LATERAL ({found} OFFSET 0) f -- OFFSET: found once, not for each row
        CROSS JOIN LATERAL (
            SELECT count(*) AS ahead FROM dp_deployments
            WHERE pipeline_name = p.name AND status = 'PENDING'
              AND seq < (SELECT seq FROM dp_deployments WHERE id = f.ids[cardinality(f.ids)])
        ) older
        LEFT JOIN LATERAL (
            SELECT * FROM (
                SELECT d.*, sum({_BYTES}) OVER (ORDER BY d.seq DESC) - {_BYTES} AS bytes_before,
                       count(*) FILTER (WHERE d.status = 'PENDING') OVER (ORDER BY d.seq) AS place
                FROM unnest(f.ids) i (id) JOIN dp_deployments d USING (id)
            ) d WHERE d.bytes_before < q.bytes
        ) d ON true {_WAITING.format(place="older.ahead + d.place")}
        WHERE p.name = q.pipeline
        ORDER BY d.seq DESC
    """


HISTORY = Statement(
    _history("""
        SELECT ARRAY(
            SELECT id FROM dp_deployments
            WHERE pipeline_name = p.name AND seq < q.before ORDER BY seq DESC LIMIT q.most
        ) AS ids, NULL::bigint AS stopped_at
    """),
    {"pipeline": "text", "before": "bigint", "most": "integer", "bytes": "bigint"},
)
# Statuses have indexes. Stages have none: the newest WALK of those with the statuses are looked at.
_LOOKED_AT = f"CASE WHEN q.reached IS NULL AND q.completed IS NULL THEN q.most ELSE {WALK} END"
FILTERED_HISTORY = Statement(
    _history(f"""
        SELECT coalesce((array_agg(id ORDER BY seq DESC) FILTER (WHERE fits))[:q.most], '{{}}') AS ids,
               CASE WHEN count(*) = {WALK} AND (q.reached, q.completed) IS DISTINCT FROM (NULL, NULL)
                    THEN min(seq) END AS stopped_at
        FROM (
            SELECT d.id, d.seq,
                   (q.reached IS NULL OR array_position(d.stages, q.reached) <= d.stage_index + 1)
                   AND (q.completed IS NULL OR array_position(d.stages, q.completed)
                        <= d.stage_index + (d.status = 'COMPLETED')::integer) AS fits
            FROM (
                (SELECT * FROM dp_deployments
                 WHERE q.statuses IS NULL AND pipeline_name = p.name AND seq < q.before
                 ORDER BY seq DESC LIMIT {_LOOKED_AT})
                UNION ALL
                SELECT ended.* FROM unnest(q.statuses) s (status) CROSS JOIN LATERAL (
                    SELECT * FROM dp_deployments
                    WHERE pipeline_name = p.name AND status = s.status AND seq < q.before
                      AND status IN ('COMPLETED', 'ROLLED_BACK', 'CANCELLED')
                    ORDER BY seq DESC LIMIT {_LOOKED_AT}
                ) ended
                UNION ALL
                SELECT * FROM dp_deployments
                WHERE 'PENDING' = ANY (q.statuses) AND pipeline_name = p.name AND seq < q.before
                  AND status = 'PENDING'
                UNION ALL
                SELECT * FROM dp_deployments
                WHERE 'IN_PROGRESS' = ANY (q.statuses) AND pipeline_name = p.name AND seq < q.before
                  AND status = 'IN_PROGRESS'
            ) d
            ORDER BY d.seq DESC LIMIT {_LOOKED_AT}
        ) walked
    """),
    {**HISTORY.types, "statuses": "text[]", "reached": "text", "completed": "text"},
)
# One row for the pipeline, with how many wait; one for each stage, with what completed it last; one for the
# active deployment; and one for each that waits, with its place.
STATE = Statement(
    f"""
    SELECT k.kind, k.place, {STAGE_STATE.columns("k")}, {PIPELINE.columns("whole")}, {_DEPLOYMENT}
    FROM dp_pipelines p {_IN_THE_WAY}
    CROSS JOIN LATERAL (
        SELECT 'PIPELINE' AS kind, count(*) AS place, NULL::text AS name, NULL::timestamptz AS completed_at,
               NULL::uuid AS deployment_id, NULL::text AS version, NULL::bigint AS seq, NULL::uuid AS id
        FROM dp_deployments WHERE pipeline_name = p.name AND status = 'PENDING'
        UNION ALL
        SELECT 'STAGE', s.n, s.name, e.created_at, live.id, live.version, live.seq, NULL
        FROM unnest(p.stages) WITH ORDINALITY s (name, n)
        LEFT JOIN LATERAL (
            SELECT deployment_id, created_at FROM dp_events
            WHERE pipeline_name = p.name AND stage = s.name AND type IN ('ADVANCE', 'COMPLETE')
            ORDER BY event_no DESC LIMIT 1
        ) e ON true
        LEFT JOIN dp_deployments live ON live.id = e.deployment_id
        UNION ALL
        SELECT 'ACTIVE', 0, NULL, NULL, NULL, NULL, NULL, active.id WHERE active.id IS NOT NULL
        UNION ALL
        SELECT 'WAITING', place, NULL, NULL, NULL, NULL, NULL, id FROM (
            SELECT id, row_number() OVER (ORDER BY seq) AS place,
                   sum(bytes) OVER (ORDER BY seq) - bytes AS bytes_before
            FROM (
                SELECT id, seq, {_BYTES} AS bytes FROM dp_deployments d
                WHERE pipeline_name = p.name AND status = 'PENDING' ORDER BY seq LIMIT q.most
            ) d
        ) d WHERE bytes_before < q.bytes
    ) k
    LEFT JOIN dp_pipelines whole ON whole.name = p.name AND k.kind = 'PIPELINE'
    LEFT JOIN dp_deployments d ON d.id = k.id {_WAITING.format(place="k.place")}
    WHERE p.name = q.name
    ORDER BY k.kind, k.place
    """,
    {"name": "text", "most": "integer", "bytes": "bigint"},
)
PIPELINE_EVENTS = Statement(
    f"""
    SELECT {EVENT.columns("e")} FROM dp_events e
    WHERE e.pipeline_name = q.name AND e.event_no > q.after ORDER BY e.event_no LIMIT q.most
    """,
    {"name": "text", "after": "bigint", "most": "integer"},
)
DEPLOYMENT_EVENTS = Statement(
    f"""
    SELECT {EVENT.columns("e")} FROM dp_events e
    WHERE e.deployment_id = q.id AND e.event_no > q.after ORDER BY e.event_no LIMIT q.most
    """,
    {"id": "uuid", "after": "bigint", "most": "integer"},
)
