-- Start a deployment, or let it wait: p_on_busy is REJECT, QUEUE or SUPERSEDE. Outcomes: OK, REPLAYED (with
-- the deployment that this request made), REQUEST_ID_REUSED, PIPELINE_NOT_FOUND, PIPELINE_BUSY (with the
-- deployment in the way), RETRY_WITHOUT_TOKEN, PIPELINE_LOCKED and QUEUE_FULL (with the pipeline), MUST_WAIT (for
-- the row lock, with a p_wait_ms below 0).
--
-- p_attempt_id is what other attempts at the same call are stored under, if a mesh says what belongs together. It
-- tells a repeat for 60 seconds, and until what it started has ended: later, the same identity means a new call.
-- p_is_repeat: it is known to be one, so if its first attempt is not found, it starts nothing.
--
-- It looks twice. First without a lock, so that a refused trigger writes nothing and takes no transaction id;
-- then, if there seemed to be a place, under the pipeline's row lock, where what it sees is final: each
-- statement of a function sees what was committed while it waited.
CREATE OR REPLACE FUNCTION dp_trigger(
    p_id uuid, p_pipeline_name text, p_version text, p_on_busy text, p_labels jsonb, p_reason text,
    p_request_id text, p_digest bytea, p_wait_ms integer,
    p_attempt_id text DEFAULT '', p_is_repeat boolean DEFAULT false,
    p_actor text DEFAULT '', p_via text DEFAULT ''
) RETURNS TABLE (outcome text, deployment dp_deployments, pipeline dp_pipelines, waiting dp_waiting)
LANGUAGE plpgsql AS $$
DECLARE
    v_found record;
    v_busy boolean;
    v_promoted integer := 0;
    v_at timestamptz;
BEGIN
    IF p_attempt_id <> '' AND NOT EXISTS (
        SELECT FROM dp_events e JOIN dp_deployments d ON d.id = e.deployment_id
        WHERE e.pipeline_name = p_pipeline_name AND e.request_id = p_attempt_id AND e.request_digest <> p_digest
          AND (d.completed_at IS NOT NULL OR d.created_at < clock_timestamp() - interval '60 seconds'))
    THEN
        p_request_id := p_attempt_id;
    END IF;
    FOR v_look IN 1..2 LOOP
        IF v_look = 2 THEN
            PERFORM dp_row_lock(p_pipeline_name, p_wait_ms);
            IF NOT FOUND THEN
                outcome := 'MUST_WAIT';
                RETURN NEXT;
                RETURN;
            END IF;
        END IF;
        v_at := clock_timestamp();

        -- One statement, one snapshot: a repeat never meets its own deployment as the obstacle.
        SELECT p, dp_repeat(e, p_digest) AS repeat, e.deployment_id, active,
               CASE p_on_busy WHEN 'QUEUE' THEN (
                   SELECT count(*) FROM dp_deployments
                   WHERE pipeline_name = p_pipeline_name AND status = 'PENDING') END AS pending
        INTO v_found
        FROM dp_pipelines p
        LEFT JOIN dp_events e ON e.pipeline_name = p.name AND e.request_id = p_request_id
        LEFT JOIN dp_deployments active ON active.pipeline_name = p.name AND active.status = 'IN_PROGRESS'
        WHERE p.name = p_pipeline_name;
        pipeline := v_found.p;
        deployment := v_found.active;

        IF v_found.repeat IS NOT NULL THEN
            outcome := CASE WHEN p_request_id = p_attempt_id THEN 'REPLAYED' ELSE v_found.repeat END;
            IF outcome = 'REPLAYED' THEN
                -- Said under the lock only: its commit waits for a standby as the first one's did.
                CONTINUE WHEN v_look = 1;
                SELECT * INTO deployment FROM dp_deployments WHERE id = v_found.deployment_id;
                IF deployment.status = 'PENDING' THEN
                    waiting := dp_waiting_for(p_pipeline_name, deployment.seq);
                END IF;
            END IF;
            RETURN NEXT;
            RETURN;
        END IF;

        -- A line that nobody resumed after a lock starts now: this trigger does not overtake it.
        IF v_look = 2 AND deployment.id IS NULL THEN
            deployment := dp_promote(p_pipeline_name, v_at, p_actor, p_via);
            v_promoted := (deployment.id IS NOT NULL)::integer;
        END IF;
        v_busy := deployment.id IS NOT NULL;
        outcome := CASE
            WHEN pipeline.name IS NULL THEN 'PIPELINE_NOT_FOUND'
            WHEN v_busy AND p_on_busy = 'REJECT' THEN 'PIPELINE_BUSY'
            WHEN p_is_repeat THEN 'RETRY_WITHOUT_TOKEN'
            WHEN dp_is_locked(pipeline, v_at) THEN 'PIPELINE_LOCKED'
            WHEN NOT v_busy THEN 'OK'
            WHEN p_on_busy = 'QUEUE' AND v_found.pending - v_promoted >= pipeline.max_pending THEN 'QUEUE_FULL'
            WHEN pipeline.max_pending = 0 THEN 'QUEUE_FULL'
            ELSE 'OK' END;
        IF outcome <> 'OK' THEN
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;

    IF NOT v_busy THEN
        IF pipeline.locked_at IS NOT NULL THEN
            PERFORM dp_clear_lock(p_pipeline_name);
        END IF;
        deployment := dp_open_deployment(
            p_id => p_id, p_pipeline => p_pipeline_name, p_status => 'IN_PROGRESS', p_version => p_version,
            p_labels => p_labels, p_at => v_at, p_actor => p_actor, p_via => p_via, p_reason => p_reason,
            p_request_id => p_request_id, p_digest => p_digest);
    ELSE
        IF p_on_busy = 'SUPERSEDE' THEN
            PERFORM dp_close_deployment(
                p_id => d.id, p_event => 'SUPERSEDE', p_at => v_at, p_successor => p_id,
                p_actor => p_actor, p_via => p_via,
                p_reason => format('superseded by deployment %s of version "%s"', p_id, p_version))
            FROM (SELECT id FROM dp_deployments WHERE pipeline_name = p_pipeline_name AND status = 'PENDING'
                  ORDER BY seq) d;
        END IF;
        deployment := dp_open_deployment(
            p_id => p_id, p_pipeline => p_pipeline_name, p_status => 'PENDING', p_version => p_version,
            p_labels => p_labels, p_at => v_at, p_actor => p_actor, p_via => p_via, p_reason => p_reason,
            p_request_id => p_request_id, p_digest => p_digest);
        waiting := dp_waiting_for(p_pipeline_name, deployment.seq);
    END IF;
    RETURN NEXT;
END
$$;
