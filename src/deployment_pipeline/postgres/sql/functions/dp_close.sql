-- End a deployment other than by completion: p_event is ROLLBACK, CANCEL or SUPERSEDE. The caller holds the
-- pipeline's row lock and has judged.
CREATE OR REPLACE FUNCTION dp_close(
    p_id uuid, p_event text, p_at timestamptz, p_reason text, p_request_id text, p_digest bytea,
    p_successor uuid DEFAULT NULL
) RETURNS dp_deployments LANGUAGE plpgsql AS $$
DECLARE
    v_from text := (SELECT status FROM dp_deployments WHERE id = p_id);
    v_deployment dp_deployments;
BEGIN
    UPDATE dp_deployments SET
        status = CASE p_event WHEN 'ROLLBACK' THEN 'ROLLED_BACK' ELSE 'CANCELLED' END,
        cause = CASE p_event WHEN 'ROLLBACK' THEN 'ROLLED_BACK' WHEN 'CANCEL' THEN 'CANCELLED'
                             WHEN 'SUPERSEDE' THEN 'SUPERSEDED' END,
        cause_message = p_reason,
        completed_at = p_at,
        superseded_by = CASE p_event WHEN 'SUPERSEDE' THEN p_successor END,
        redeployed_by = CASE p_event WHEN 'ROLLBACK' THEN p_successor END
    WHERE id = p_id RETURNING * INTO v_deployment;
    PERFORM dp_record(v_deployment.pipeline_name, p_event, p_at, p_reason, p_request_id, p_digest,
                      p_id, v_deployment.current_stage, v_from, v_deployment.status);
    RETURN v_deployment;
END
$$;
