-- What the gateway asks of the record of migrations. It never migrates.

-- name: has_run
-- Whether a file of the schema has run. Files run in order, and none is ever taken back.
SELECT EXISTS (SELECT FROM schema_migrations WHERE number = $1)
