-- A lock's number, by which it is lifted: the event_no of its LOCK event.
ALTER TABLE dp_pipelines ADD COLUMN lock_no bigint;
UPDATE dp_pipelines p SET lock_no = (
    SELECT event_no FROM dp_events e WHERE e.pipeline_name = p.name AND e.type = 'LOCK'
    ORDER BY event_no DESC LIMIT 1)
WHERE locked_at IS NOT NULL;
