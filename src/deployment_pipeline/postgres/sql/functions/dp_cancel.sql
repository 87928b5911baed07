-- Cancel a deployment; if it held the slot, that starts the next in line (`started`). Outcomes: those of
-- dp_find_deployment.
CREATE OR REPLACE FUNCTION dp_cancel(
    p_deployment_id uuid, p_reason text, p_request_id text, p_digest bytea, p_wait_ms integer,
    p_actor text DEFAULT '', p_via text DEFAULT ''
) RETURNS TABLE (outcome text, deployment dp_deployments, started uuid) LANGUAGE plpgsql AS $$
DECLARE
    v_found record;
    v_at timestamptz;
BEGIN
    SELECT * INTO v_found FROM dp_find_deployment(p_deployment_id, p_request_id, p_digest, p_wait_ms);
    outcome := v_found.outcome;
    deployment := v_found.deployment;
    IF outcome = 'OK' THEN
        v_at := clock_timestamp();
        deployment := dp_close_deployment(
            p_id => p_deployment_id, p_event => 'CANCEL', p_at => v_at,
            p_actor => p_actor, p_via => p_via, p_reason => p_reason,
            p_request_id => p_request_id, p_digest => p_digest);
        IF deployment.started_at IS NOT NULL THEN
            started := (dp_promote(deployment.pipeline_name, v_at, p_actor, p_via)).id;
        END IF;
    END IF;
    RETURN NEXT;
END
$$;
