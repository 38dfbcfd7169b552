-- What an org asks of all its tokens.

-- name: find
-- How long tokens of an org may live.
SELECT token_life_max FROM orgs WHERE id = $1

-- name: lock
-- The same, held until the transaction ends.
SELECT token_life_max FROM orgs WHERE id = $1 FOR NO KEY UPDATE

-- name: update
-- Say how long tokens of an org may live; those that would live longer are shortened by a trigger.
UPDATE orgs SET token_life_max = $2 WHERE id = $1

-- name: allow_time
-- Many rows take longer than what one request may usually ask for; until the transaction ends.
SELECT set_config('statement_timeout', $1, true)

-- name: changing_transaction
-- This transaction, if it has logged a change.
SELECT pg_current_xact_id()::text
WHERE EXISTS (SELECT FROM change_log WHERE xact = pg_current_xact_id())
