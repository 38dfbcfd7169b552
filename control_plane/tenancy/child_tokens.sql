-- Child tokens.

-- name: count_children
-- How many children of a token live.
SELECT count(*) FROM tokens
WHERE parent_id = $1 AND revoked_at IS NULL AND expires_at > clock_timestamp()
