-- Gateway tokens that read for machines.

-- name: find_reader
-- The token that has this digest, where it may do anything from this address.
SELECT token_id, org_id, scopes FROM find_reader($1, $2)
