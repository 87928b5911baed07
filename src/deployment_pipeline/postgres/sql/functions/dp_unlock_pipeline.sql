-- Lift a pipeline's lock: that of p_lock_no or, without one, only one of the caller's own, by p_actor or, if he is
-- anonymous, by p_owner (the release before passes NULL, and lifts any). With p_start_next, also start the head of the line if the slot is free (which is
-- allowed without a lock: a line that waited behind an expired one). Outcomes: OK, REPLAYED,
-- REQUEST_ID_REUSED, PIPELINE_NOT_FOUND, PIPELINE_NOT_LOCKED, LOCK_MISMATCH (another lock stands). `deployment` is
-- what started.
CREATE OR REPLACE FUNCTION dp_unlock_pipeline(
    p_name text, p_reason text, p_start_next boolean, p_request_id text, p_digest bytea, p_wait_ms integer,
    p_lock_no bigint DEFAULT 0, p_owner text DEFAULT NULL, p_actor text DEFAULT '', p_via text DEFAULT ''
) RETURNS TABLE (outcome text, pipeline dp_pipelines, deployment dp_deployments) LANGUAGE plpgsql AS $$
DECLARE
    v_event dp_events;
    v_resumes boolean;
    v_stands boolean;
    v_is_own boolean;
    v_at timestamptz;
BEGIN
    SELECT * INTO pipeline FROM dp_row_lock(p_name, p_wait_ms);
    SELECT * INTO v_event FROM dp_events WHERE pipeline_name = p_name AND request_id = p_request_id;
    v_resumes := p_start_next
        AND NOT EXISTS (SELECT FROM dp_deployments WHERE pipeline_name = p_name AND status = 'IN_PROGRESS')
        AND EXISTS (SELECT FROM dp_deployments WHERE pipeline_name = p_name AND status = 'PENDING');
    v_at := clock_timestamp();
    v_stands := dp_is_locked(pipeline, v_at);
    -- Of a caller who is known, his own locks are those that he set, whatever text he gives as their owner.
    v_is_own := CASE
        WHEN p_owner IS NULL THEN true
        WHEN p_actor <> '' THEN pipeline.locked_by = p_actor AND p_owner IN ('', pipeline.lock_owner)
        ELSE pipeline.locked_by = '' AND p_owner <> '' AND p_owner = pipeline.lock_owner END;
    outcome := CASE
        WHEN pipeline.name IS NULL THEN 'PIPELINE_NOT_FOUND'
        WHEN v_event.request_id IS NOT NULL THEN dp_repeat(v_event, p_digest)
        WHEN v_stands AND p_lock_no > 0 AND pipeline.lock_no IS DISTINCT FROM p_lock_no THEN 'LOCK_MISMATCH'
        WHEN v_stands AND p_lock_no = 0 AND NOT v_is_own THEN 'LOCK_MISMATCH'
        WHEN v_stands OR v_resumes THEN 'OK'
        ELSE 'PIPELINE_NOT_LOCKED' END;
    IF outcome = 'OK' THEN
        PERFORM dp_clear_lock(p_name);
        SELECT * INTO pipeline FROM dp_pipelines WHERE name = p_name;
        PERFORM dp_append_event(
            p_pipeline => p_name, p_type => 'UNLOCK', p_at => v_at,
            p_actor => p_actor, p_via => p_via, p_reason => p_reason,
            p_request_id => p_request_id, p_digest => p_digest);
        IF v_resumes THEN
            deployment := dp_promote(p_name, v_at, p_actor, p_via);
        END IF;
    ELSIF outcome = 'REPLAYED' THEN
        -- What it started then is the event behind its own.
        SELECT d.* INTO deployment
        FROM dp_events e JOIN dp_deployments d ON d.id = e.deployment_id
        WHERE e.pipeline_name = p_name AND e.event_no = v_event.event_no + 1 AND e.type = 'PROMOTE'
          AND e.created_at = v_event.created_at;
    END IF;
    RETURN NEXT;
END
$$;
