-- Add a deployment, IN_PROGRESS at the first stage or PENDING, with the next seq and its event. The caller
-- holds the pipeline's row lock and has checked that it may.
CREATE OR REPLACE FUNCTION dp_open_deployment(
    p_id uuid, p_pipeline text, p_status text, p_version text, p_at timestamptz,
    p_actor text, p_via text, p_reason text,
    p_labels jsonb DEFAULT '{}', p_rollback_of uuid DEFAULT NULL,
    p_request_id text DEFAULT NULL, p_digest bytea DEFAULT NULL
) RETURNS dp_deployments LANGUAGE plpgsql AS $$
DECLARE
    v_starts boolean := p_status = 'IN_PROGRESS';
    v_deployment dp_deployments;
BEGIN
    WITH counted AS (
        UPDATE dp_pipelines SET last_seq = last_seq + 1
        WHERE name = p_pipeline RETURNING last_seq, stages
    )
    INSERT INTO dp_deployments (id, pipeline_name, seq, version, stages, stage_index, stage_entered_at,
                                status, created_at, started_at, triggered_by, via, reason, labels,
                                rollback_of)
    SELECT p_id, p_pipeline, last_seq, p_version, stages,
           CASE WHEN v_starts THEN 0 END, CASE WHEN v_starts THEN ARRAY[p_at] ELSE '{}' END,
           p_status, p_at, CASE WHEN v_starts THEN p_at END, p_actor, p_via, p_reason, p_labels,
           p_rollback_of
    FROM counted
    RETURNING * INTO v_deployment;
    PERFORM dp_append_event(
        p_pipeline => p_pipeline, p_type => CASE WHEN v_starts THEN 'TRIGGER' ELSE 'QUEUE' END, p_at => p_at,
        p_actor => p_actor, p_via => p_via, p_reason => p_reason, p_request_id => p_request_id, p_digest => p_digest,
        p_deployment => p_id, p_stage => v_deployment.current_stage, p_to => p_status);
    RETURN v_deployment;
END
$$;
