-- Change a pipeline's definition; NULL leaves a field as it is. Outcomes: OK, REPLAYED, REQUEST_ID_REUSED,
-- PIPELINE_NOT_FOUND, REVISION_MISMATCH.
CREATE OR REPLACE FUNCTION dp_update_pipeline(
    p_name text, p_stages text[], p_description text, p_labels jsonb, p_max_pending integer,
    p_expected_revision bigint, p_request_id text, p_digest bytea, p_wait_ms integer
) RETURNS TABLE (outcome text, pipeline dp_pipelines) LANGUAGE plpgsql AS $$
DECLARE
    v_event dp_events;
BEGIN
    SELECT * INTO pipeline FROM dp_row_lock(p_name, p_wait_ms);
    SELECT * INTO v_event FROM dp_events WHERE pipeline_name = p_name AND request_id = p_request_id;
    outcome := CASE
        WHEN pipeline.name IS NULL THEN 'PIPELINE_NOT_FOUND'
        WHEN v_event.request_digest IS DISTINCT FROM p_digest AND v_event.request_id IS NOT NULL
            THEN 'REQUEST_ID_REUSED'
        WHEN v_event.request_id IS NOT NULL THEN 'REPLAYED'
        WHEN pipeline.revision <> p_expected_revision THEN 'REVISION_MISMATCH'
        ELSE 'OK' END;
    IF outcome = 'OK' THEN
        UPDATE dp_pipelines SET
            stages = coalesce(p_stages, stages),
            description = coalesce(p_description, description),
            labels = coalesce(p_labels, labels),
            max_pending = coalesce(p_max_pending, max_pending),
            revision = revision + 1,
            updated_at = clock_timestamp()
        WHERE name = p_name RETURNING * INTO pipeline;
        PERFORM dp_record(p_name, 'UPDATE', pipeline.updated_at, '', p_request_id, p_digest);
    END IF;
    RETURN NEXT;
END
$$;
