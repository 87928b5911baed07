-- Roll a deployment back. With p_redeploy_last_completed or a p_redeploy_version, a new deployment (of the last
-- known good version, or of that one) takes its slot under p_redeploy_id before anything that waits; a lock does
-- not stop it. With neither, the next in line starts. `started` is what took the slot. Outcomes: NO_KNOWN_GOOD,
-- DEPLOYMENT_NOT_IN_PROGRESS, and those of dp_find_deployment.
CREATE OR REPLACE FUNCTION dp_rollback(
    p_deployment_id uuid, p_reason text, p_redeploy_last_completed boolean, p_redeploy_version text,
    p_redeploy_id uuid, p_request_id text, p_digest bytea, p_wait_ms integer,
    p_actor text DEFAULT '', p_via text DEFAULT ''
) RETURNS TABLE (outcome text, deployment dp_deployments, started uuid) LANGUAGE plpgsql AS $$
DECLARE
    v_found record;
    v_at timestamptz;
    v_version text := p_redeploy_version;
BEGIN
    SELECT * INTO v_found FROM dp_find_deployment(p_deployment_id, p_request_id, p_digest, p_wait_ms);
    outcome := v_found.outcome;
    deployment := v_found.deployment;
    IF outcome = 'OK' AND deployment.status = 'PENDING' THEN
        outcome := 'DEPLOYMENT_NOT_IN_PROGRESS';
    END IF;
    IF outcome = 'OK' AND p_redeploy_last_completed THEN
        SELECT version INTO v_version FROM dp_versions
        WHERE pipeline_name = deployment.pipeline_name AND version <> deployment.version
        ORDER BY completed_no DESC LIMIT 1;
        IF NOT FOUND THEN
            outcome := 'NO_KNOWN_GOOD';
        END IF;
    END IF;
    IF outcome = 'OK' THEN
        v_at := clock_timestamp();
        -- The old row is closed before the new one opens: the partial unique index looks at every row.
        deployment := dp_close_deployment(
            p_id => p_deployment_id, p_event => 'ROLLBACK', p_at => v_at, p_actor => p_actor, p_via => p_via,
            p_reason => p_reason, p_request_id => p_request_id, p_digest => p_digest,
            p_successor => CASE WHEN v_version IS NOT NULL THEN p_redeploy_id END);
        IF v_version IS NULL THEN
            started := (dp_promote(deployment.pipeline_name, v_at, p_actor, p_via)).id;
        ELSE
            started := (dp_open_deployment(
                p_id => p_redeploy_id, p_pipeline => deployment.pipeline_name, p_status => 'IN_PROGRESS',
                p_version => v_version, p_at => v_at,
                p_actor => p_actor, p_via => p_via, p_reason => p_reason, p_rollback_of => p_deployment_id)).id;
        END IF;
    END IF;
    RETURN NEXT;
END
$$;
