-- Accounts, as who runs the installation sees them.

-- name: list
-- Every account, oldest first.
SELECT
    id::text, email, name, is_operator, totp_enabled_at IS NOT NULL AS totp, created_at, disabled_at
FROM accounts ORDER BY created_at, id

-- name: find
-- The account that an address belongs to, locked.
SELECT id FROM accounts WHERE email_key = $1 FOR UPDATE
