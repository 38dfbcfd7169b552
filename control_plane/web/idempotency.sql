-- What was answered to requests that may come twice.

-- name: reserve
-- Reserve a key; no row where it is there already.
INSERT INTO idempotency_keys (account_id, route, key, request_digest)
VALUES ($1, $2, $3, $4)
ON CONFLICT (account_id, route, key) DO UPDATE
SET request_digest = EXCLUDED.request_digest, status = NULL, answer = NULL,
    created_at = clock_timestamp()
WHERE idempotency_keys.created_at < clock_timestamp() - interval '24 hours'
RETURNING true

-- name: find
-- What was answered under a key.
SELECT request_digest, status, answer, created_at < clock_timestamp() - interval '1 minute' AS is_old
FROM idempotency_keys WHERE account_id = $1 AND route = $2 AND key = $3

-- name: keep
-- Keep the answer.
UPDATE idempotency_keys SET status = $4, answer = $5
WHERE account_id = $1 AND route = $2 AND key = $3

-- name: give_up
-- Forget a request that did nothing.
DELETE FROM idempotency_keys WHERE account_id = $1 AND route = $2 AND key = $3 AND status IS NULL

-- name: prune
-- Forget what is older than a day, some at a time.
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys
    WHERE created_at < clock_timestamp() - interval '24 hours' LIMIT 10000
))
