-- The three tables. How they are changed: sql/functions.

CREATE TABLE dp_pipelines (
    name text COLLATE "C" PRIMARY KEY,
    stages text[] NOT NULL CHECK (cardinality(stages) > 0),
    description text NOT NULL,
    labels jsonb NOT NULL,
    max_pending integer NOT NULL CHECK (max_pending >= 0),
    revision bigint NOT NULL DEFAULT 1,
    -- Counters, raised under this row's lock: without a gap, and in the order of the commits.
    last_seq bigint NOT NULL DEFAULT 0,
    last_event_no bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
) WITH (fillfactor = 50); -- the counters are updated in place

CREATE TABLE dp_deployments (
    id uuid PRIMARY KEY,
    pipeline_name text COLLATE "C" NOT NULL REFERENCES dp_pipelines,
    seq bigint NOT NULL,
    version text NOT NULL,
    stages text[] NOT NULL, -- pinned: as they were when it was triggered
    stage_index integer,
    stage_entered_at timestamptz[] NOT NULL DEFAULT '{}',
    status text NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    completed_at timestamptz,
    triggered_by text NOT NULL DEFAULT '',
    reason text NOT NULL,
    cause text,
    cause_message text NOT NULL DEFAULT '',
    labels jsonb NOT NULL,
    rollback_of uuid,
    redeployed_by uuid,
    superseded_by uuid,
    current_stage text GENERATED ALWAYS AS (stages[stage_index + 1]) STORED,
    total_stages integer GENERATED ALWAYS AS (cardinality(stages)) STORED,

    CONSTRAINT dp_deployments_status CHECK
        (status IN ('PENDING', 'IN_PROGRESS', 'COMPLETED', 'ROLLED_BACK', 'CANCELLED')),
    CONSTRAINT dp_deployments_started CHECK
        (CASE status WHEN 'PENDING' THEN started_at IS NULL
                     WHEN 'CANCELLED' THEN true
                     ELSE started_at IS NOT NULL END),
    CONSTRAINT dp_deployments_completed CHECK
        ((completed_at IS NOT NULL) = (status IN ('COMPLETED', 'ROLLED_BACK', 'CANCELLED'))),
    CONSTRAINT dp_deployments_stage CHECK
        ((stage_index IS NULL) = (started_at IS NULL)
         AND stage_index BETWEEN 0 AND cardinality(stages) - 1
         AND cardinality(stage_entered_at) = coalesce(stage_index + 1, 0)),
    CONSTRAINT dp_deployments_cause CHECK
        (coalesce(cause, '') = CASE WHEN status IN ('CANCELLED', 'ROLLED_BACK') THEN status ELSE '' END)
) WITH (fillfactor = 80);

-- The guarantee: one deployment at a time per pipeline, whatever any code does.
CREATE UNIQUE INDEX dp_deployments_one_in_progress ON dp_deployments (pipeline_name)
    WHERE status = 'IN_PROGRESS';
-- History, newest first.
CREATE UNIQUE INDEX dp_deployments_seq ON dp_deployments (pipeline_name, seq);

-- One row per change, written in the change's own commit.
CREATE TABLE dp_events (
    pipeline_name text COLLATE "C" NOT NULL REFERENCES dp_pipelines,
    event_no bigint NOT NULL,
    deployment_id uuid,
    type text NOT NULL,
    stage text,
    from_status text,
    to_status text,
    actor text NOT NULL DEFAULT '',
    reason text NOT NULL,
    request_id text,
    -- What the request was, to tell a repeat from another request. NULL: the service made the request_id.
    request_digest bytea,
    created_at timestamptz NOT NULL,

    PRIMARY KEY (pipeline_name, event_no),
    -- The law of states (states.py): nothing else can be written.
    CONSTRAINT dp_events_law CHECK (
        CASE WHEN deployment_id IS NULL
        THEN type IN ('CREATE', 'UPDATE') AND from_status IS NULL AND to_status IS NULL
        ELSE (type, coalesce(from_status, ''), coalesce(to_status, '')) IN (
            ('TRIGGER', '', 'IN_PROGRESS'),
            ('CANCEL', 'PENDING', 'CANCELLED'),
            ('ADVANCE', 'IN_PROGRESS', 'IN_PROGRESS'),
            ('COMPLETE', 'IN_PROGRESS', 'COMPLETED'),
            ('ROLLBACK', 'IN_PROGRESS', 'ROLLED_BACK'),
            ('CANCEL', 'IN_PROGRESS', 'CANCELLED'))
        END)
);

-- The record that makes a repeated request harmless.
CREATE UNIQUE INDEX dp_events_request_id ON dp_events (pipeline_name, request_id)
    WHERE request_id IS NOT NULL;

-- What belongs to this database as a whole: one row.
CREATE TABLE dp_installation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- The release whose sql/functions are installed, and their digest.
    release integer[] NOT NULL DEFAULT '{}',
    functions_digest text NOT NULL DEFAULT '',
    -- Signs page tokens, so that one cannot be made up or altered.
    page_token_key uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO dp_installation DEFAULT VALUES;
