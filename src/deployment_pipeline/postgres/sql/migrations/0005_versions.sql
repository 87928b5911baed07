-- Which deployment completed each version last, so that the last known good version is found by an index, however
-- often one version was completed. It follows the event log, whatever function of whichever release writes there.
CREATE TABLE dp_versions (
    pipeline_name text COLLATE "C" NOT NULL REFERENCES dp_pipelines,
    version text COLLATE "C" NOT NULL,
    completed_no bigint NOT NULL, -- the event_no of its last COMPLETE
    completed_id uuid NOT NULL, -- that deployment
    PRIMARY KEY (pipeline_name, version)
);
CREATE INDEX dp_versions_completed ON dp_versions (pipeline_name, completed_no);

CREATE FUNCTION dp_note_completion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO dp_versions AS known (pipeline_name, version, completed_no, completed_id)
    SELECT pipeline_name, version, NEW.event_no, id FROM dp_deployments WHERE id = NEW.deployment_id
    ON CONFLICT (pipeline_name, version) DO UPDATE
    SET completed_no = EXCLUDED.completed_no, completed_id = EXCLUDED.completed_id
    WHERE known.completed_no < EXCLUDED.completed_no;
    RETURN NULL;
END
$$;
CREATE TRIGGER dp_events_completed AFTER INSERT ON dp_events
    FOR EACH ROW WHEN (NEW.type = 'COMPLETE') EXECUTE FUNCTION dp_note_completion();
