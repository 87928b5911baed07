-- Lock a pipeline's row: the first step of every change, and the only lock that anybody waits for.
-- p_wait_ms is what is left of the caller's time; when it has run out, the statement fails and changes nothing.
-- Below 0: do not wait at all; no row if somebody else has it. Batches do so, which hold others' locks.
CREATE OR REPLACE FUNCTION dp_row_lock(p_pipeline text, p_wait_ms integer)
RETURNS SETOF dp_pipelines LANGUAGE plpgsql AS $$
BEGIN
    IF p_wait_ms < 0 THEN
        RETURN QUERY SELECT * FROM dp_pipelines WHERE name = p_pipeline FOR NO KEY UPDATE SKIP LOCKED;
    ELSE
        PERFORM set_config('lock_timeout', greatest(p_wait_ms, 1)::text, true);
        RETURN QUERY SELECT * FROM dp_pipelines WHERE name = p_pipeline FOR NO KEY UPDATE;
    END IF;
END
$$;
