-- Start the head of the waiting line, if there is one and no lock stands; its row, or NULLs. The caller
-- holds the pipeline's row lock, and the slot is free. Whatever frees a slot calls this in the same commit.
CREATE OR REPLACE FUNCTION dp_promote(p_pipeline text, p_at timestamptz, p_actor text, p_via text)
RETURNS dp_deployments LANGUAGE plpgsql AS $$
DECLARE
    v_found record;
    v_head dp_deployments;
BEGIN
    -- No SKIP LOCKED: the head is the oldest one, whoever looks at it.
    SELECT d AS head, p.locked_at IS NOT NULL AS was_locked INTO v_found
    FROM dp_pipelines p JOIN dp_deployments d ON d.pipeline_name = p.name AND d.status = 'PENDING'
    WHERE p.name = p_pipeline AND NOT dp_is_locked(p, p_at)
    ORDER BY d.seq LIMIT 1;
    IF FOUND THEN
        v_head := v_found.head;
        IF v_found.was_locked THEN
            PERFORM dp_clear_lock(p_pipeline);
        END IF;
        UPDATE dp_deployments SET
            status = 'IN_PROGRESS', started_at = p_at, stage_index = 0, stage_entered_at = ARRAY[p_at]
        WHERE id = v_head.id RETURNING * INTO v_head;
        PERFORM dp_append_event(
            p_pipeline => p_pipeline, p_type => 'PROMOTE', p_at => p_at,
            p_actor => p_actor, p_via => p_via, p_reason => '',
            p_deployment => v_head.id, p_stage => v_head.current_stage, p_from => 'PENDING', p_to => 'IN_PROGRESS');
    END IF;
    RETURN v_head;
END
$$;
