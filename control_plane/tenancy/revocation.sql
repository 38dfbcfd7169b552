-- The end of many tokens at once, and of one by whoever holds it.

-- name: allow_time
-- Many rows take longer than what one request may usually ask for; until the transaction ends.
SELECT set_config('statement_timeout', $1, true)

-- name: hold_org
-- Wait for the tokens that are being made in an org, and let no others be made until the transaction
-- ends: none that was there before survives.
SELECT true FROM orgs WHERE id = $1 FOR NO KEY UPDATE

-- name: scope
-- Let the org or the user stand for all of its tokens that end in this transaction.
SELECT set_config('kaixu.revocation_scope', $1, true)

-- name: revoke_of_org
-- End every token of an org.
WITH ended AS (
    UPDATE tokens SET revoked_at = clock_timestamp() WHERE org_id = $1 AND revoked_at IS NULL
    RETURNING id
)
SELECT count(*) FROM ended

-- name: revoke_of_user
-- End every token of a member of an org.
WITH ended AS (
    UPDATE tokens SET revoked_at = clock_timestamp()
    WHERE org_id = $1 AND user_id = $2 AND revoked_at IS NULL
    RETURNING id
)
SELECT count(*) FROM ended

-- name: revoke_every
-- End every token of every org.
SELECT revoke_every_token()

-- name: user_exists
-- Whether an org has, or had, a member.
SELECT EXISTS (SELECT FROM users WHERE org_id = $1 AND id = $2)

-- name: revoke_shown
-- End the token, or the old secret of one, that has this digest.
SELECT org_id, token_id, is_retired FROM revoke_shown_secret($1)

-- name: changing_transaction
-- This transaction, if it has logged a change.
SELECT pg_current_xact_id()::text
WHERE EXISTS (SELECT FROM change_log WHERE xact = pg_current_xact_id())
