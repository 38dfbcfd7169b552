-- What changes about an account: its password, its address.

-- name: set_password
-- Give an account another password.
UPDATE accounts
SET password_hash = $2, password_key = $3, password_changed_at = clock_timestamp()
WHERE id = $1 AND disabled_at IS NULL
RETURNING email

-- name: keep_link
-- Keep what was mailed to an account: its link is good for a while, and earlier ones are not.
WITH void AS (
    UPDATE mailed_links SET used_at = clock_timestamp()
    WHERE account_id = $2 AND purpose = $3 AND used_at IS NULL
), old AS (
    DELETE FROM mailed_links WHERE account_id = $2
        AND expires_at < clock_timestamp() - interval '30 days'
)
INSERT INTO mailed_links (digest, purpose, account_id, email_key, email, expires_at)
SELECT $1, $3, id, email_key, $4, clock_timestamp() + $5::interval
FROM accounts WHERE id = $2

-- name: good_link
-- Whom a link is for, if it is good still.
SELECT * FROM good_link($1, $2)

-- name: use_link
-- Use a link up; no row: it was used, or is too old.
UPDATE mailed_links SET used_at = clock_timestamp()
WHERE digest = $1 AND purpose = $2 AND account_id = $3 AND used_at IS NULL
    AND expires_at > clock_timestamp()
RETURNING true

-- name: void_links
-- Use every open link of an account up.
UPDATE mailed_links SET used_at = clock_timestamp() WHERE account_id = $1 AND used_at IS NULL

-- name: lock
-- Lock an account, and say which address it has.
SELECT email, email_key FROM accounts WHERE id = $1 AND disabled_at IS NULL FOR UPDATE

-- name: set_email
-- Give an account another address, which was confirmed.
UPDATE accounts SET email = $2, email_key = $3, email_verified_at = clock_timestamp()
WHERE id = $1
