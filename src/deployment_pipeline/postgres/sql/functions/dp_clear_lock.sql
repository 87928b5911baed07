-- Take a lock off a pipeline that it no longer holds up: it was lifted, or had expired when something started. What
-- has been acted on as over stays over, even if the clock goes back. The caller holds the pipeline's row lock.
CREATE OR REPLACE FUNCTION dp_clear_lock(p_pipeline text) RETURNS void LANGUAGE sql AS $$
    UPDATE dp_pipelines SET
        lock_no = NULL, locked_by = '', lock_reason = NULL, lock_owner = NULL, locked_at = NULL, lock_expires_at = NULL
    WHERE name = p_pipeline
$$;
