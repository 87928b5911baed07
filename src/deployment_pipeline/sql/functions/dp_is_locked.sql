-- Whether people have frozen the pipeline. A lock that has expired is no lock, without anybody writing so.
CREATE OR REPLACE FUNCTION dp_is_locked(p dp_pipelines) RETURNS boolean LANGUAGE sql AS $$
    SELECT p.locked_at IS NOT NULL AND coalesce(p.lock_expires_at > clock_timestamp(), true)
$$;
