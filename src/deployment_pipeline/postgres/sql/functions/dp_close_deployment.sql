-- End a deployment other than by completion: p_event is ROLLBACK, CANCEL or SUPERSEDE. The caller holds the
-- pipeline's row lock and has checked that it may.
CREATE OR REPLACE FUNCTION dp_close_deployment(
    p_id uuid, p_event text, p_at timestamptz, p_actor text, p_via text, p_reason text, p_successor uuid DEFAULT NULL,
    p_request_id text DEFAULT NULL, p_digest bytea DEFAULT NULL
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
    PERFORM dp_append_event(
        p_pipeline => v_deployment.pipeline_name, p_type => p_event, p_at => p_at,
        p_actor => p_actor, p_via => p_via, p_reason => p_reason,
        p_request_id => p_request_id, p_digest => p_digest,
        p_deployment => p_id, p_stage => v_deployment.current_stage, p_from => v_from, p_to => v_deployment.status);
    RETURN v_deployment;
END
$$;
