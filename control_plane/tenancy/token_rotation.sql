-- A token's secret is replaced; the token stays.

-- name: forget
-- Forget old secrets of a token that open nothing any more.
DELETE FROM retired_digests WHERE token_id = $1 AND until <= clock_timestamp()

-- name: end_old
-- End all old secrets of a token now.
DELETE FROM retired_digests WHERE token_id = $1

-- name: shorten_old
-- Let no old secret of a token outlive the one that is replaced now; return how many there are.
WITH old AS (
    UPDATE retired_digests SET until = least(until, clock_timestamp() + $2) WHERE token_id = $1
    RETURNING digest
)
SELECT count(*) FROM old

-- name: retire
-- Keep the present secret for a while, until its own end at the latest.
INSERT INTO retired_digests (digest, token_id, org_id, until)
SELECT digest, id, org_id, least(expires_at, clock_timestamp() + $2) FROM tokens WHERE id = $1

-- name: renew
-- Give a token another secret; the transaction's id finds the change.
UPDATE tokens
SET digest = $2, hint = $3, expires_at = $4, issued_at = clock_timestamp()
WHERE id = $1
RETURNING pg_current_xact_id()::text AS xact
