-- Move a deployment to its next stage, or from the last one to COMPLETED, which starts the next in line
-- (`started`). p_attempt_id is what other attempts at the same call are stored under, if a mesh says what belongs
-- together: REQUEST_ID_REUSED says that one was made. Outcomes: OK, STAGE_MISMATCH, DEPLOYMENT_NOT_IN_PROGRESS,
-- and those of dp_find_deployment.
CREATE OR REPLACE FUNCTION dp_advance(
    p_deployment_id uuid, p_expected_stage text, p_reason text,
    p_request_id text, p_digest bytea, p_wait_ms integer, p_attempt_id text DEFAULT '',
    p_actor text DEFAULT '', p_via text DEFAULT ''
) RETURNS TABLE (outcome text, deployment dp_deployments, started uuid) LANGUAGE plpgsql AS $$
DECLARE
    v_found record;
    v_at timestamptz;
    v_stage text;
BEGIN
    p_request_id := coalesce(nullif(p_attempt_id, ''), p_request_id);
    SELECT * INTO v_found FROM dp_find_deployment(p_deployment_id, p_request_id, p_digest, p_wait_ms);
    outcome := v_found.outcome;
    deployment := v_found.deployment;
    IF outcome = 'OK' THEN
        outcome := CASE
            WHEN deployment.status = 'PENDING' THEN 'DEPLOYMENT_NOT_IN_PROGRESS'
            WHEN deployment.current_stage <> nullif(p_expected_stage, '') THEN 'STAGE_MISMATCH'
            ELSE 'OK' END;
    END IF;
    IF outcome = 'OK' THEN
        v_at := clock_timestamp();
        v_stage := deployment.current_stage;
        IF deployment.stage_index + 1 < deployment.total_stages THEN
            UPDATE dp_deployments SET
                stage_index = stage_index + 1, stage_entered_at = stage_entered_at || v_at
            WHERE id = p_deployment_id RETURNING * INTO deployment;
            PERFORM dp_append_event(
                p_pipeline => deployment.pipeline_name, p_type => 'ADVANCE', p_at => v_at,
                p_actor => p_actor, p_via => p_via, p_reason => p_reason,
                p_request_id => p_request_id, p_digest => p_digest,
                p_deployment => p_deployment_id, p_stage => v_stage, p_from => 'IN_PROGRESS', p_to => 'IN_PROGRESS');
        ELSE
            UPDATE dp_deployments SET status = 'COMPLETED', completed_at = v_at
            WHERE id = p_deployment_id RETURNING * INTO deployment;
            PERFORM dp_append_event(
                p_pipeline => deployment.pipeline_name, p_type => 'COMPLETE', p_at => v_at,
                p_actor => p_actor, p_via => p_via, p_reason => p_reason,
                p_request_id => p_request_id, p_digest => p_digest,
                p_deployment => p_deployment_id, p_stage => v_stage, p_from => 'IN_PROGRESS', p_to => 'COMPLETED');
            started := (dp_promote(deployment.pipeline_name, v_at, p_actor, p_via)).id;
        END IF;
    END IF;
    RETURN NEXT;
END
$$;
