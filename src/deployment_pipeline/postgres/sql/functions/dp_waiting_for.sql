-- What a PENDING deployment with this seq waits for.
CREATE OR REPLACE FUNCTION dp_waiting_for(p_pipeline text, p_seq bigint) RETURNS dp_waiting LANGUAGE sql STABLE AS $$
    SELECT
        (SELECT count(*)::integer FROM dp_deployments
         WHERE pipeline_name = p_pipeline AND status = 'PENDING' AND seq <= p_seq),
        active.id, active.version, active.current_stage, active.started_at,
        CASE WHEN dp_is_locked(p, clock_timestamp()) THEN p.lock_owner END,
        CASE WHEN dp_is_locked(p, clock_timestamp()) THEN p.lock_reason END,
        CASE WHEN dp_is_locked(p, clock_timestamp()) THEN p.lock_expires_at END
    FROM dp_pipelines p
    LEFT JOIN dp_deployments active ON active.pipeline_name = p.name AND active.status = 'IN_PROGRESS'
    WHERE p.name = p_pipeline
$$;
