-- Roll a deployment back. With a p_redeploy_id, a new deployment takes its slot before anything that waits,
-- of p_redeploy_version or, if that is NULL, of the last known good version; a lock does not stop it.
-- Without one, the next in line starts. `started` is what took the slot. Outcomes: OK, REPLAYED,
-- REQUEST_ID_REUSED, DEPLOYMENT_NOT_FOUND, DEPLOYMENT_NOT_IN_PROGRESS, DEPLOYMENT_ENDED, NO_KNOWN_GOOD.
CREATE OR REPLACE FUNCTION dp_rollback(
    p_id uuid, p_redeploy_id uuid, p_redeploy_version text, p_reason text,
    p_request_id text, p_digest bytea, p_wait_ms integer
) RETURNS TABLE (outcome text, deployment dp_deployments, started uuid) LANGUAGE plpgsql AS $$
DECLARE
    v_judged record;
    v_at timestamptz;
    v_version text := p_redeploy_version;
BEGIN
    SELECT * INTO v_judged FROM dp_judge(p_id, p_request_id, p_digest, p_wait_ms);
    outcome := v_judged.outcome;
    deployment := v_judged.deployment;
    IF outcome = 'OK' AND deployment.status = 'PENDING' THEN
        outcome := 'DEPLOYMENT_NOT_IN_PROGRESS';
    END IF;
    IF outcome = 'OK' AND p_redeploy_id IS NOT NULL AND v_version IS NULL THEN
        SELECT version INTO v_version FROM dp_deployments
        WHERE pipeline_name = deployment.pipeline_name AND status = 'COMPLETED'
          AND version <> deployment.version
        ORDER BY seq DESC LIMIT 1;
        IF NOT FOUND THEN
            outcome := 'NO_KNOWN_GOOD';
        END IF;
    END IF;
    IF outcome = 'OK' THEN
        v_at := clock_timestamp();
        -- The old row is closed before the new one opens: the partial unique index looks at every row.
        deployment := dp_close(p_id, 'ROLLBACK', v_at, p_reason, p_request_id, p_digest, p_redeploy_id);
        IF p_redeploy_id IS NULL THEN
            started := (dp_promote(deployment.pipeline_name, v_at)).id;
        ELSE
            started := (dp_insert(p_redeploy_id, deployment.pipeline_name, 'IN_PROGRESS', v_version, '{}',
                                  p_reason, NULL, NULL, v_at, p_id)).id;
        END IF;
    END IF;
    RETURN NEXT;
END
$$;
