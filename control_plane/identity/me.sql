-- What an account is told of itself.

-- name: account
-- The account.
SELECT
    id::text, email, name, email_verified_at IS NOT NULL AS email_verified,
    totp_enabled_at IS NOT NULL AS totp_enabled, is_operator,
    to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS created_at
FROM accounts WHERE id = $1

-- name: orgs
-- The orgs that an account is a member of.
SELECT o.id::text, o.name, u.id::text AS user_id, u.role, o.suspended_at IS NOT NULL AS suspended
FROM users AS u JOIN orgs AS o ON o.id = u.org_id
WHERE u.account_id = $1 AND u.disabled_at IS NULL AND u.removed_at IS NULL
    AND o.deleted_at IS NULL
ORDER BY o.name, o.id
