-- Cancel a deployment; if it held the slot, that starts the next in line (`started`). Outcomes: OK,
-- REPLAYED, REQUEST_ID_REUSED, DEPLOYMENT_NOT_FOUND, DEPLOYMENT_ENDED.
CREATE OR REPLACE FUNCTION dp_cancel(
    p_id uuid, p_reason text, p_request_id text, p_digest bytea, p_wait_ms integer
) RETURNS TABLE (outcome text, deployment dp_deployments, started uuid) LANGUAGE plpgsql AS $$
DECLARE
    v_judged record;
    v_at timestamptz;
BEGIN
    SELECT * INTO v_judged FROM dp_judge(p_id, p_request_id, p_digest, p_wait_ms);
    outcome := v_judged.outcome;
    deployment := v_judged.deployment;
    IF outcome = 'OK' THEN
        v_at := clock_timestamp();
        deployment := dp_close(p_id, 'CANCEL', v_at, p_reason, p_request_id, p_digest);
        IF deployment.started_at IS NOT NULL THEN
            started := (dp_promote(deployment.pipeline_name, v_at)).id;
        END IF;
    END IF;
    RETURN NEXT;
END
$$;
