-- The second factor of an account.

-- name: seed
-- The sealed seed of an account, and what time it is for all nodes.
SELECT
    totp_sealed, totp_enabled_at, email,
    extract(epoch FROM clock_timestamp())::double precision AS now
FROM accounts WHERE id = $1 AND totp_sealed IS NOT NULL

-- name: take_step
-- Take the code of a step, unless one as new was taken: one statement, so that two can't both.
UPDATE accounts SET totp_last_step = $2
WHERE id = $1 AND totp_enabled_at IS NOT NULL AND coalesce(totp_last_step, -1) < $2
RETURNING true

-- name: take_recovery_code
-- Take a recovery code that was not used.
UPDATE recovery_codes SET used_at = clock_timestamp()
WHERE account_id = $1 AND digest = $2 AND used_at IS NULL
    AND EXISTS (SELECT FROM accounts WHERE id = $1 AND totp_enabled_at IS NOT NULL)
RETURNING true

-- name: enrol
-- Keep a new seed that is to be confirmed; no row where a second factor is enabled.
UPDATE accounts SET totp_sealed = $2, totp_last_step = NULL
WHERE id = $1 AND totp_enabled_at IS NULL
RETURNING email

-- name: enable
-- Enable the seed that was enrolled, whose first code this step's is.
UPDATE accounts SET totp_enabled_at = clock_timestamp(), totp_last_step = $3
WHERE id = $1 AND totp_sealed = $2 AND totp_enabled_at IS NULL
RETURNING true

-- name: disable
-- Forget the second factor.
UPDATE accounts SET totp_sealed = NULL, totp_enabled_at = NULL, totp_last_step = NULL
WHERE id = $1 AND totp_enabled_at IS NOT NULL
RETURNING true

-- name: is_enabled
-- Whether there is a second factor; locks the account, so that it stays as it is.
SELECT totp_enabled_at IS NOT NULL FROM accounts WHERE id = $1 FOR UPDATE

-- name: forget_recovery_codes
-- Forget all recovery codes of an account.
DELETE FROM recovery_codes WHERE account_id = $1

-- name: keep_recovery_codes
-- Keep the digests of new recovery codes.
INSERT INTO recovery_codes (account_id, digest) SELECT $1, unnest($2::bytea[])

-- name: password_hash
-- What the account's password is checked against.
SELECT password_hash FROM accounts WHERE id = $1

-- name: sealed
-- Sealed seeds, some at a time.
SELECT id, totp_sealed FROM accounts
WHERE totp_sealed IS NOT NULL AND id > $1 ORDER BY id LIMIT $2

-- name: reseal
-- Put a seed that is sealed anew in the place of the same one.
UPDATE accounts SET totp_sealed = $3 WHERE id = $1 AND totp_sealed = $2 RETURNING true
