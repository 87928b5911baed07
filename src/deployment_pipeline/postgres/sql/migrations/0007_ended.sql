-- transactional: false
-- History with one status, newest first. (A build that was killed leaves an invalid index.)
DROP INDEX CONCURRENTLY IF EXISTS dp_deployments_ended;
CREATE INDEX CONCURRENTLY dp_deployments_ended ON dp_deployments (pipeline_name, status, seq)
    WHERE status IN ('COMPLETED', 'ROLLED_BACK', 'CANCELLED');
