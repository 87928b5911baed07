-- Append one event to a pipeline's log. The caller holds the pipeline's row lock, so event_no has no gap
-- and is in the order of the commits. p_actor: the principal who made the change; p_via: the service that called on
-- his behalf.
CREATE OR REPLACE FUNCTION dp_append_event(
    p_pipeline text, p_type text, p_at timestamptz, p_actor text, p_via text, p_reason text,
    p_request_id text DEFAULT NULL, p_digest bytea DEFAULT NULL,
    p_deployment uuid DEFAULT NULL, p_stage text DEFAULT NULL,
    p_from text DEFAULT NULL, p_to text DEFAULT NULL
) RETURNS void LANGUAGE sql AS $$
    WITH counted AS (
        UPDATE dp_pipelines SET last_event_no = last_event_no + 1
        WHERE name = p_pipeline RETURNING last_event_no
    )
    INSERT INTO dp_events (pipeline_name, event_no, deployment_id, type, stage, from_status, to_status,
                           actor, via, reason, request_id, request_digest, created_at)
    SELECT p_pipeline, last_event_no, p_deployment, p_type, p_stage, p_from, p_to,
           p_actor, p_via, p_reason, p_request_id, p_digest, p_at
    FROM counted
$$;
