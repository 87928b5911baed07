-- transactional: false
-- dp_versions and dp_deployments_ended have taken its place.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS dp_deployments_completed;
RESET lock_timeout;
