-- Freeze a pipeline, or with p_lock_no change the lock of that number, which stands without a gap and keeps its
-- number. Outcomes: OK (also if this very lock stands, and then nothing is stored), REPLAYED, REQUEST_ID_REUSED,
-- PIPELINE_NOT_FOUND, PIPELINE_LOCKED (by another lock), LOCK_MISMATCH (p_lock_no is not the lock that stands),
-- PIPELINE_NOT_LOCKED (there is none to change), EXPIRY_PASSED.
CREATE OR REPLACE FUNCTION dp_lock_pipeline(
    p_name text, p_reason text, p_owner text, p_expires_at timestamptz,
    p_request_id text, p_digest bytea, p_wait_ms integer, p_lock_no bigint DEFAULT 0,
    p_actor text DEFAULT '', p_via text DEFAULT ''
) RETURNS TABLE (outcome text, pipeline dp_pipelines) LANGUAGE plpgsql AS $$
DECLARE
    v_event dp_events;
    v_at timestamptz;
    v_stands boolean;
    v_is_the_same boolean;
BEGIN
    SELECT * INTO pipeline FROM dp_row_lock(p_name, p_wait_ms);
    SELECT * INTO v_event FROM dp_events WHERE pipeline_name = p_name AND request_id = p_request_id;
    v_at := clock_timestamp();
    v_stands := dp_is_locked(pipeline, v_at);
    v_is_the_same := v_stands
        AND (pipeline.lock_reason, pipeline.lock_owner, pipeline.lock_expires_at, pipeline.locked_by)
        IS NOT DISTINCT FROM (p_reason, p_owner, p_expires_at, p_actor);
    outcome := CASE
        WHEN pipeline.name IS NULL THEN 'PIPELINE_NOT_FOUND'
        WHEN v_event.request_id IS NOT NULL THEN dp_repeat(v_event, p_digest)
        WHEN p_expires_at <= v_at THEN 'EXPIRY_PASSED'
        WHEN p_lock_no > 0 AND NOT v_stands THEN 'PIPELINE_NOT_LOCKED'
        WHEN p_lock_no > 0 AND pipeline.lock_no IS DISTINCT FROM p_lock_no THEN 'LOCK_MISMATCH'
        WHEN p_lock_no = 0 AND v_stands AND NOT v_is_the_same THEN 'PIPELINE_LOCKED'
        ELSE 'OK' END;
    IF outcome = 'OK' AND NOT v_is_the_same THEN
        UPDATE dp_pipelines SET
            lock_no = CASE WHEN v_stands THEN lock_no ELSE last_event_no + 1 END,
            locked_at = CASE WHEN v_stands THEN locked_at ELSE v_at END,
            lock_reason = p_reason, lock_owner = p_owner, lock_expires_at = p_expires_at,
            locked_by = p_actor
        WHERE name = p_name RETURNING * INTO pipeline;
        PERFORM dp_append_event(
            p_pipeline => p_name, p_type => 'LOCK', p_at => v_at,
            p_actor => p_actor, p_via => p_via, p_reason => p_reason,
            p_request_id => p_request_id, p_digest => p_digest);
    END IF;
    RETURN NEXT;
END
$$;
