-- What is kept about people, and for how long.

-- name: export
-- All that is kept about the account that the transaction belongs to.
SELECT personal_data($1)::text

-- name: take_time
-- Let this transaction's statements take longer than others': so many milliseconds.
SELECT set_config('statement_timeout', $1, true)

-- name: erase
-- Forget the account that the transaction belongs to, or name the org that it is the only owner of.
SELECT erase_account()

-- name: changing_transaction
-- This transaction, if it has logged a change.
SELECT pg_current_xact_id()::text
WHERE EXISTS (SELECT FROM change_log WHERE xact = pg_current_xact_id())

-- name: retention
-- How many days what is kept.
SELECT refusals_days, sessions_days, mailed_links_days, audit_days FROM retention

-- name: lock_retention
-- The same, until the transaction ends.
SELECT refusals_days, sessions_days, mailed_links_days, audit_days FROM retention FOR UPDATE

-- name: set_retention
-- Say how many days what is kept.
UPDATE retention
SET refusals_days = $1, sessions_days = $2, mailed_links_days = $3, audit_days = $4
