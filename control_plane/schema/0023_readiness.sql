-- The control plane too looks which files have run: it is not ready on a schema older than its own.

GRANT SELECT ON schema_migrations TO kaixu_control;
