-- Sign-ups, and the accounts and orgs that come of them.

-- name: keep
-- Keep what somebody asks for.
INSERT INTO signups (
    id, digest, email, email_key, name, org_name, password_hash, password_key, expires_at
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp() + $9::interval)

-- name: prune
-- Forget some of those that were never confirmed.
DELETE FROM signups WHERE id IN (
    SELECT id FROM signups WHERE expires_at < clock_timestamp()
    ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED
)

-- name: renew_link
-- Give the last sign-up with an address another link, and say where that goes.
UPDATE signups SET digest = $2
WHERE id = (
    SELECT id FROM signups
    WHERE email_key = $1 AND expires_at > clock_timestamp()
    ORDER BY created_at DESC LIMIT 1
)
RETURNING email

-- name: find
-- What a good link stands for, as far as it takes to ask for the password.
SELECT password_hash, password_key FROM signups
WHERE digest = $1 AND expires_at > clock_timestamp()

-- name: take
-- Take a sign-up by its link, and all others with the same address; no row: somebody has.
WITH taken AS (
    DELETE FROM signups WHERE digest = $1 AND expires_at > clock_timestamp()
    RETURNING email, email_key, name, org_name, password_hash, password_key
), others AS (
    DELETE FROM signups USING taken
    WHERE signups.email_key = taken.email_key AND signups.digest <> $1
)
SELECT * FROM taken

-- name: make_account
-- Make an account, whose address is confirmed; no row where the address has one.
INSERT INTO accounts (
    id, email, email_key, email_verified_at, name, password_hash, password_key, password_changed_at
)
VALUES ($1, $2, $3, clock_timestamp(), $4, $5, $6, clock_timestamp())
ON CONFLICT (email_key) DO NOTHING
RETURNING true

-- name: make_org
-- Make an org.
INSERT INTO orgs (id, name) VALUES ($1, $2)

-- name: make_workspace
-- Make the workspace that every org begins with.
INSERT INTO workspaces (id, org_id, name) VALUES ($1, $2, 'default')

-- name: make_owner
-- Make an account the owner of an org.
INSERT INTO users (id, org_id, name, account_id, role) VALUES ($1, $2, $3, $4, 'owner')
