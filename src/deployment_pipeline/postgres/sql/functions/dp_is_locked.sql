-- Whether people have frozen the pipeline at that time. An expired lock has no effect, and nobody needs to clear
-- it. A function asks about one moment throughout, because the lock may expire while it runs.
CREATE OR REPLACE FUNCTION dp_is_locked(p dp_pipelines, p_at timestamptz)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p.locked_at IS NOT NULL AND coalesce(p.lock_expires_at > p_at, true)
$$;
