-- transactional: false
-- What was completed before the trigger was there, one pipeline in a transaction: completions wait for it.
DO $$
DECLARE
    v_pipeline text;
BEGIN
    FOR v_pipeline IN SELECT name FROM dp_pipelines LOOP
        INSERT INTO dp_versions AS known (pipeline_name, version, completed_no, completed_id)
        SELECT DISTINCT ON (d.version) d.pipeline_name, d.version, e.event_no, d.id
        FROM dp_events e JOIN dp_deployments d ON d.id = e.deployment_id
        WHERE e.pipeline_name = v_pipeline AND e.type = 'COMPLETE'
        ORDER BY d.version, e.event_no DESC
        ON CONFLICT (pipeline_name, version) DO UPDATE
        SET completed_no = EXCLUDED.completed_no, completed_id = EXCLUDED.completed_id
        WHERE known.completed_no < EXCLUDED.completed_no;
        COMMIT;
    END LOOP;
END
$$;
