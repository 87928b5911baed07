-- Who changed what: triggered_by and actor have been there from the beginning. via is the service that called on
-- somebody's behalf; locked_by is who set the lock.
ALTER TABLE dp_deployments ADD COLUMN via text NOT NULL DEFAULT '';
ALTER TABLE dp_events ADD COLUMN via text NOT NULL DEFAULT '';
ALTER TABLE dp_pipelines ADD COLUMN locked_by text NOT NULL DEFAULT '';
