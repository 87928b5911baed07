-- Start a deployment. Outcomes: OK, REPLAYED (with the deployment that this request made),
-- REQUEST_ID_REUSED, PIPELINE_NOT_FOUND, PIPELINE_BUSY (with the deployment in the way).
--
-- It judges twice. First without a lock, so that a refused trigger writes nothing and takes no transaction
-- id; then, if the slot seemed free, under the pipeline's row lock, where the judgement is final: each
-- statement of a function sees what was committed while it waited.
CREATE FUNCTION dp_trigger(
    p_id uuid, p_pipeline text, p_version text, p_labels jsonb, p_reason text,
    p_request_id text, p_digest bytea, p_wait_ms integer
) RETURNS TABLE (outcome text, deployment dp_deployments) LANGUAGE plpgsql AS $$
DECLARE
    v_found record;
    v_at timestamptz;
BEGIN
    FOR v_look IN 1..2 LOOP
        IF v_look = 2 THEN
            PERFORM dp_lock(p_pipeline, p_wait_ms);
        END IF;

        SELECT p.stages, p.last_seq, e.request_id, e.request_digest, e.deployment_id, active
        INTO v_found
        FROM dp_pipelines p
        LEFT JOIN dp_events e ON e.pipeline_name = p.name AND e.request_id = p_request_id
        LEFT JOIN dp_deployments active ON active.pipeline_name = p.name AND active.status = 'IN_PROGRESS'
        WHERE p.name = p_pipeline;

        outcome := CASE
            WHEN NOT FOUND THEN 'PIPELINE_NOT_FOUND'
            WHEN v_found.request_id IS NULL AND (v_found.active).id IS NOT NULL THEN 'PIPELINE_BUSY'
            WHEN v_found.request_id IS NULL THEN 'OK'
            WHEN v_found.request_digest IS DISTINCT FROM p_digest THEN 'REQUEST_ID_REUSED'
            ELSE 'REPLAYED' END;
        IF outcome = 'PIPELINE_BUSY' THEN
            deployment := v_found.active;
        ELSIF outcome = 'REPLAYED' THEN
            SELECT * INTO deployment FROM dp_deployments WHERE id = v_found.deployment_id;
        END IF;
        IF outcome <> 'OK' THEN
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;

    v_at := clock_timestamp();
    UPDATE dp_pipelines SET last_seq = last_seq + 1 WHERE name = p_pipeline;
    INSERT INTO dp_deployments (id, pipeline_name, seq, version, stages, stage_index, stage_entered_at,
                                status, created_at, started_at, reason, labels)
    VALUES (p_id, p_pipeline, v_found.last_seq + 1, p_version, v_found.stages, 0, ARRAY[v_at],
            'IN_PROGRESS', v_at, v_at, p_reason, p_labels)
    RETURNING * INTO deployment;
    PERFORM dp_record(p_pipeline, 'TRIGGER', v_at, p_reason, p_request_id, p_digest,
                      p_id, deployment.current_stage, NULL, 'IN_PROGRESS');
    RETURN NEXT;
END
$$;
