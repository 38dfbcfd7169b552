-- name: lock
-- Wait until no other migrator works on this database.
SELECT pg_advisory_lock($1)

-- name: unlock
-- Let the next migrator in.
SELECT pg_advisory_unlock($1)

-- name: create_table
-- The record of what has run.
CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
)

-- name: applied
-- Every file that has run.
SELECT number, name, checksum FROM schema_migrations

-- name: record
-- A file has run.
INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)
