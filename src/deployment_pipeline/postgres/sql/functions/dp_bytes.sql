-- About how many bytes of an answer a deployment takes, beside what it waits for; never far too few.
CREATE OR REPLACE FUNCTION dp_bytes(d dp_deployments) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT 256 + 96 * d.total_stages + octet_length(d.version) + octet_length(d.reason)
         + octet_length(d.cause_message) + octet_length(d.labels::text)
$$;
