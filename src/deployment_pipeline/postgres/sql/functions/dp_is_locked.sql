-- Whether people have frozen the pipeline at that time. A lock that has expired is no lock, without anybody
-- writing so; whoever judges asks for one time, for it may expire meanwhile.
CREATE OR REPLACE FUNCTION dp_is_locked(p dp_pipelines, p_at timestamptz)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p.locked_at IS NOT NULL AND coalesce(p.lock_expires_at > p_at, true)
$$;
