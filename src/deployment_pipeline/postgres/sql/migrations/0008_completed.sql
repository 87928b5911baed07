-- transactional: false
-- dp_versions and dp_deployments_ended have taken its place.
DROP INDEX CONCURRENTLY IF EXISTS dp_deployments_completed;
