-- The rule of repeats, the only copy. p_event is what was written under a request's request_id, if anything was.
-- NULL: nothing; REPLAYED: it was this request; REQUEST_ID_REUSED: it was another one. Final only under the
-- pipeline's row lock.
CREATE OR REPLACE FUNCTION dp_repeat(p_event dp_events, p_digest bytea)
RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_event.request_id IS NULL THEN NULL
                WHEN p_event.request_digest IS NOT DISTINCT FROM p_digest THEN 'REPLAYED'
                ELSE 'REQUEST_ID_REUSED' END
$$;
