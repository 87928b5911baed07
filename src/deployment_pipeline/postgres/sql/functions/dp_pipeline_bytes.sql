-- About how many bytes of an answer a pipeline takes; never far too few.
CREATE OR REPLACE FUNCTION dp_pipeline_bytes(p dp_pipelines) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT 256 + 64 * cardinality(p.stages) + octet_length(p.description) + octet_length(p.labels::text)
$$;
