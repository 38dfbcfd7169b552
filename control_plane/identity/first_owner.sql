-- The first person of an installation.

-- name: has_account
-- Whether there is an account.
SELECT EXISTS (SELECT FROM accounts)

-- name: make_operator
-- Make the account of who runs the installation; no row where there is one.
INSERT INTO accounts (
    email, email_key, email_verified_at, name, password_hash, password_key, password_changed_at,
    is_operator
)
VALUES ($1, $2, clock_timestamp(), 'Owner', $3, $4, clock_timestamp(), true)
ON CONFLICT (email_key) DO NOTHING
RETURNING id

-- name: make_owner
-- Let an account be the user that the first org was made with, and its owner.
UPDATE users SET account_id = $1, role = 'owner'
WHERE id = (
    SELECT u.id FROM users AS u JOIN orgs AS o ON o.id = u.org_id
    WHERE u.account_id IS NULL AND u.removed_at IS NULL
    ORDER BY o.created_at, o.id, u.created_at, u.id LIMIT 1
)
RETURNING id, org_id
