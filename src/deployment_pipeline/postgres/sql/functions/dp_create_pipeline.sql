-- Define a pipeline. Outcomes: OK (also if it exists with this definition, and then nothing is stored), REPLAYED
-- (this request made it), REQUEST_ID_REUSED, PIPELINE_EXISTS.
CREATE OR REPLACE FUNCTION dp_create_pipeline(
    p_name text, p_stages text[], p_description text, p_labels jsonb, p_max_pending bigint,
    p_request_id text, p_digest bytea, p_wait_ms integer,
    p_actor text DEFAULT '', p_via text DEFAULT ''
) RETURNS TABLE (outcome text, pipeline dp_pipelines) LANGUAGE plpgsql AS $$
DECLARE
    v_event dp_events;
BEGIN
    -- Look first: an insert that loses would cost a transaction id.
    SELECT * INTO pipeline FROM dp_pipelines WHERE name = p_name;
    IF NOT FOUND THEN
        PERFORM set_config('lock_timeout', greatest(p_wait_ms, 1)::text, true);
        INSERT INTO dp_pipelines (name, stages, description, labels, max_pending, created_at, updated_at)
        VALUES (p_name, p_stages, p_description, p_labels, p_max_pending, now(), now())
        ON CONFLICT DO NOTHING
        RETURNING * INTO pipeline;
        IF FOUND THEN
            PERFORM dp_append_event(
                p_pipeline => p_name, p_type => 'CREATE', p_at => now(),
                p_actor => p_actor, p_via => p_via, p_reason => '',
                p_request_id => p_request_id, p_digest => p_digest);
            outcome := 'OK';
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;

    -- Under the row's lock, a repeat is as durable as the first one was.
    SELECT * INTO pipeline FROM dp_row_lock(p_name, p_wait_ms);
    SELECT * INTO v_event FROM dp_events WHERE pipeline_name = p_name AND request_id = p_request_id;
    outcome := CASE
        WHEN v_event.request_id IS NOT NULL THEN dp_repeat(v_event, p_digest)
        WHEN (pipeline.stages, pipeline.description, pipeline.labels, pipeline.max_pending)
            IS NOT DISTINCT FROM (p_stages, p_description, p_labels, p_max_pending) THEN 'OK'
        ELSE 'PIPELINE_EXISTS' END;
    RETURN NEXT;
END
$$;
