-- Change the fields of a pipeline's definition that p_update_mask names. p_expected_revision 0: any. Outcomes: OK,
-- REPLAYED, REQUEST_ID_REUSED, PIPELINE_NOT_FOUND, REVISION_MISMATCH.
CREATE OR REPLACE FUNCTION dp_update_pipeline(
    p_name text, p_update_mask text[], p_stages text[], p_description text, p_labels jsonb, p_max_pending bigint,
    p_expected_revision bigint, p_request_id text, p_digest bytea, p_wait_ms integer,
    p_actor text DEFAULT '', p_via text DEFAULT ''
) RETURNS TABLE (outcome text, pipeline dp_pipelines) LANGUAGE plpgsql AS $$
DECLARE
    v_event dp_events;
BEGIN
    SELECT * INTO pipeline FROM dp_row_lock(p_name, p_wait_ms);
    SELECT * INTO v_event FROM dp_events WHERE pipeline_name = p_name AND request_id = p_request_id;
    outcome := CASE
        WHEN pipeline.name IS NULL THEN 'PIPELINE_NOT_FOUND'
        WHEN v_event.request_id IS NOT NULL THEN dp_repeat(v_event, p_digest)
        WHEN pipeline.revision <> nullif(p_expected_revision, 0) THEN 'REVISION_MISMATCH'
        ELSE 'OK' END;
    IF outcome = 'OK' THEN
        UPDATE dp_pipelines SET
            stages = CASE WHEN 'stages' = ANY (p_update_mask) THEN p_stages ELSE stages END,
            description = CASE WHEN 'description' = ANY (p_update_mask) THEN p_description ELSE description END,
            labels = CASE WHEN 'labels' = ANY (p_update_mask) THEN p_labels ELSE labels END,
            max_pending = CASE WHEN 'max_pending' = ANY (p_update_mask) THEN p_max_pending ELSE max_pending END,
            revision = revision + 1,
            updated_at = clock_timestamp()
        WHERE name = p_name RETURNING * INTO pipeline;
        PERFORM dp_append_event(
            p_pipeline => p_name, p_type => 'UPDATE', p_at => pipeline.updated_at,
            p_actor => p_actor, p_via => p_via, p_reason => '',
            p_request_id => p_request_id, p_digest => p_digest);
    END IF;
    RETURN NEXT;
END
$$;
