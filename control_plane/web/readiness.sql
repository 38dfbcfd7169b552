-- Whether the control plane can do its work.

-- name: look
-- The newest file of the schema that has run, and the database's time in Unix seconds.
SELECT
    coalesce(max(number), 0)::integer AS newest,
    extract(epoch FROM clock_timestamp())::double precision AS now
FROM schema_migrations
