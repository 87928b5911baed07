-- What every change of an existing deployment begins with: lock its pipeline, look for the request's own
-- earlier work, and refuse what has ended. Outcomes: OK, REPLAYED, REQUEST_ID_REUSED, DEPLOYMENT_NOT_FOUND,
-- DEPLOYMENT_ENDED, MUST_WAIT (for the row lock, with a p_wait_ms below 0).
CREATE OR REPLACE FUNCTION dp_find_deployment(
    p_id uuid, p_request_id text, p_digest bytea, p_wait_ms integer
) RETURNS TABLE (outcome text, deployment dp_deployments) LANGUAGE plpgsql AS $$
BEGIN
    SELECT * INTO deployment FROM dp_deployments WHERE id = p_id;
    IF NOT FOUND THEN
        outcome := 'DEPLOYMENT_NOT_FOUND';
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM dp_row_lock(deployment.pipeline_name, p_wait_ms);
    IF NOT FOUND THEN
        outcome := 'MUST_WAIT';
        RETURN NEXT;
        RETURN;
    END IF;
    -- Read again: it may have been changed while the lock was awaited.
    SELECT * INTO deployment FROM dp_deployments WHERE id = p_id;
    outcome := coalesce(
        (SELECT dp_repeat(e, p_digest) FROM dp_events e
         WHERE e.pipeline_name = deployment.pipeline_name AND e.request_id = p_request_id),
        CASE WHEN deployment.completed_at IS NOT NULL THEN 'DEPLOYMENT_ENDED' ELSE 'OK' END);
    RETURN NEXT;
END
$$;
