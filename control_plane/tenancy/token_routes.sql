-- What changing a token takes, beside its limits.

-- name: now
-- The database's time.
SELECT clock_timestamp()

-- name: update
-- Write what may change of a token.
UPDATE tokens SET name = $2, scopes = $3, models = $4, vendors = $5, addresses = $6, expires_at = $7
WHERE id = $1

-- name: changing_transaction
-- This transaction, if it has logged a change.
SELECT pg_current_xact_id()::text
WHERE EXISTS (SELECT FROM change_log WHERE xact = pg_current_xact_id())
