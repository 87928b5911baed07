-- transactional: false
-- History with one status, newest first. (A build that was killed leaves an invalid index.)
SET lock_timeout = 0; -- to build it, every older transaction must end; nobody waits behind that
DROP INDEX CONCURRENTLY IF EXISTS dp_deployments_ended;
CREATE INDEX CONCURRENTLY dp_deployments_ended ON dp_deployments (pipeline_name, status, seq)
    WHERE status IN ('COMPLETED', 'ROLLED_BACK', 'CANCELLED');
RESET lock_timeout;
