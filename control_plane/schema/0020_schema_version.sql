-- Gateways look which files have run: one serves nothing on a schema that is older than it needs.

GRANT SELECT ON schema_migrations TO kaixu_gateway;
