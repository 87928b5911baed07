-- End a deployment: p_event is ROLLBACK or CANCEL. Outcomes: OK, REPLAYED, REQUEST_ID_REUSED,
-- DEPLOYMENT_NOT_FOUND, DEPLOYMENT_NOT_IN_PROGRESS, DEPLOYMENT_ENDED.
CREATE FUNCTION dp_end(
    p_id uuid, p_event text, p_reason text, p_request_id text, p_digest bytea, p_wait_ms integer
) RETURNS TABLE (outcome text, deployment dp_deployments) LANGUAGE plpgsql AS $$
DECLARE
    v_judged record;
    v_at timestamptz;
    v_from text;
    v_to text := CASE p_event WHEN 'ROLLBACK' THEN 'ROLLED_BACK' WHEN 'CANCEL' THEN 'CANCELLED' END;
BEGIN
    SELECT * INTO v_judged FROM dp_judge(p_id, p_request_id, p_digest, p_wait_ms);
    outcome := v_judged.outcome;
    deployment := v_judged.deployment;
    IF outcome = 'OK' AND p_event = 'ROLLBACK' AND deployment.status = 'PENDING' THEN
        outcome := 'DEPLOYMENT_NOT_IN_PROGRESS';
    END IF;
    IF outcome = 'OK' THEN
        v_at := clock_timestamp();
        v_from := deployment.status;
        UPDATE dp_deployments SET
            status = v_to, completed_at = v_at, cause = v_to, cause_message = p_reason
        WHERE id = p_id RETURNING * INTO deployment;
        PERFORM dp_record(deployment.pipeline_name, p_event, v_at, p_reason, p_request_id, p_digest,
                          p_id, deployment.current_stage, v_from, v_to);
    END IF;
    RETURN NEXT;
END
$$;
