-- Freeze a pipeline. Outcomes: OK, REPLAYED (this very lock stands, or this request made one),
-- REQUEST_ID_REUSED, PIPELINE_NOT_FOUND, PIPELINE_LOCKED (by another lock), EXPIRY_PASSED.
CREATE OR REPLACE FUNCTION dp_lock_pipeline(
    p_name text, p_reason text, p_owner text, p_expires_at timestamptz,
    p_request_id text, p_digest bytea, p_wait_ms integer
) RETURNS TABLE (outcome text, pipeline dp_pipelines) LANGUAGE plpgsql AS $$
DECLARE
    v_event dp_events;
    v_at timestamptz;
BEGIN
    SELECT * INTO pipeline FROM dp_row_lock(p_name, p_wait_ms);
    SELECT * INTO v_event FROM dp_events WHERE pipeline_name = p_name AND request_id = p_request_id;
    v_at := clock_timestamp();
    outcome := CASE
        WHEN pipeline.name IS NULL THEN 'PIPELINE_NOT_FOUND'
        WHEN v_event.request_id IS NOT NULL THEN dp_repeat(v_event, p_digest)
        WHEN p_expires_at <= v_at THEN 'EXPIRY_PASSED'
        WHEN NOT dp_is_locked(pipeline, v_at) THEN 'OK'
        WHEN (pipeline.lock_reason, pipeline.lock_owner, pipeline.lock_expires_at)
            IS NOT DISTINCT FROM (p_reason, p_owner, p_expires_at) THEN 'REPLAYED'
        ELSE 'PIPELINE_LOCKED' END;
    IF outcome = 'OK' THEN
        UPDATE dp_pipelines SET
            lock_reason = p_reason, lock_owner = p_owner, locked_at = v_at, lock_expires_at = p_expires_at
        WHERE name = p_name RETURNING * INTO pipeline;
        PERFORM dp_append_event(
            p_pipeline => p_name, p_type => 'LOCK', p_at => v_at, p_reason => p_reason,
            p_request_id => p_request_id, p_digest => p_digest);
    END IF;
    RETURN NEXT;
END
$$;
