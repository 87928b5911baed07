-- The waiting line, the way back, and locks.

ALTER TABLE dp_pipelines
    ADD COLUMN lock_reason text,
    ADD COLUMN lock_owner text,
    ADD COLUMN locked_at timestamptz,
    ADD COLUMN lock_expires_at timestamptz, -- NULL: until it is unlocked
    ADD CONSTRAINT dp_pipelines_lock CHECK
        ((locked_at IS NULL) = (lock_reason IS NULL)
         AND (locked_at IS NULL) = (lock_owner IS NULL)
         AND (locked_at IS NOT NULL OR lock_expires_at IS NULL));

ALTER TABLE dp_deployments
    DROP CONSTRAINT dp_deployments_cause,
    ADD CONSTRAINT dp_deployments_cause CHECK
        (CASE status WHEN 'ROLLED_BACK' THEN coalesce(cause, '') = 'ROLLED_BACK'
                     WHEN 'CANCELLED' THEN coalesce(cause, '') IN ('CANCELLED', 'SUPERSEDED')
                     ELSE cause IS NULL END
         AND (coalesce(cause, '') = 'SUPERSEDED') = (superseded_by IS NOT NULL));

-- The waiting line, in its order.
CREATE INDEX dp_deployments_pending ON dp_deployments (pipeline_name, seq) WHERE status = 'PENDING';
-- The last known good version.
CREATE INDEX dp_deployments_completed ON dp_deployments (pipeline_name, seq) WHERE status = 'COMPLETED';

ALTER TABLE dp_events
    DROP CONSTRAINT dp_events_law,
    ADD CONSTRAINT dp_events_law CHECK (
        CASE WHEN deployment_id IS NULL
        THEN type IN ('CREATE', 'UPDATE', 'LOCK', 'UNLOCK') AND from_status IS NULL AND to_status IS NULL
        ELSE (type, coalesce(from_status, ''), coalesce(to_status, '')) IN (
            ('TRIGGER', '', 'IN_PROGRESS'),
            ('QUEUE', '', 'PENDING'),
            ('PROMOTE', 'PENDING', 'IN_PROGRESS'),
            ('SUPERSEDE', 'PENDING', 'CANCELLED'),
            ('CANCEL', 'PENDING', 'CANCELLED'),
            ('ADVANCE', 'IN_PROGRESS', 'IN_PROGRESS'),
            ('COMPLETE', 'IN_PROGRESS', 'COMPLETED'),
            ('ROLLBACK', 'IN_PROGRESS', 'ROLLED_BACK'),
            ('CANCEL', 'IN_PROGRESS', 'CANCELLED'))
        END);

-- One deployment's events.
CREATE INDEX dp_events_deployment ON dp_events (deployment_id, event_no);
-- Which deployment completed a stage last.
CREATE INDEX dp_events_stage_completed ON dp_events (pipeline_name, stage, event_no)
    WHERE type IN ('ADVANCE', 'COMPLETE');

-- What was installed, to be taken away when a release has it no more.
ALTER TABLE dp_installation ADD COLUMN functions text[] NOT NULL DEFAULT '{}';

-- What a PENDING deployment waits for; a result type of the functions.
CREATE TYPE dp_waiting AS (
    queue_position integer, -- 1 for the next to start
    active_id uuid, -- the deployment in the way; NULL if the slot is free
    active_version text,
    active_stage text,
    active_since timestamptz,
    lock_owner text, -- of the lock that stands; NULL if none does
    lock_reason text,
    lock_expires_at timestamptz
);
