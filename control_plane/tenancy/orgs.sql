-- Orgs: making, changing, suspending and ending them.

-- name: owned
-- How many orgs an account is an owner of, and whether it may make one: its address is confirmed.
-- Until the transaction ends it makes no other.
SELECT
    (
        SELECT count(*) FROM users AS u JOIN orgs AS o ON o.id = u.org_id
        WHERE u.account_id = $1 AND u.role = 'owner' AND u.removed_at IS NULL
            AND o.deleted_at IS NULL
    ) AS owned,
    a.email_verified_at IS NOT NULL AS is_verified,
    coalesce(nullif(a.name, ''), a.email) AS name
FROM accounts AS a WHERE a.id = $1 FOR UPDATE

-- name: create
-- Insert an org.
INSERT INTO orgs (id, name) VALUES ($1, $2)

-- name: create_workspace
-- Insert the workspace that every org begins with.
INSERT INTO workspaces (org_id, name) VALUES ($1, 'default')

-- name: create_owner
-- Make an account the first owner of an org.
INSERT INTO users (org_id, account_id, name, role) VALUES ($1, $2, $3, 'owner')

-- name: read
-- An org, as its members see it.
SELECT id::text, name, requires_totp, extract(epoch FROM token_life_max)::float8 AS life, created_at
FROM orgs WHERE id = $1 AND deleted_at IS NULL

-- name: read_locked
-- Likewise, until the transaction ends nobody else changes it.
SELECT id::text, name, requires_totp, extract(epoch FROM token_life_max)::float8 AS life, created_at
FROM orgs WHERE id = $1 AND deleted_at IS NULL FOR UPDATE

-- name: change
-- Change what is given of an org.
UPDATE orgs SET
    name = coalesce($2, name),
    requires_totp = coalesce($3, requires_totp),
    token_life_max = coalesce($4::interval, token_life_max)
WHERE id = $1

-- name: delete
-- End an org; the transaction's id finds its change. Whoever asks is in it, so it is not suspended.
UPDATE orgs
SET deleted_at = clock_timestamp(), suspended_at = clock_timestamp()
WHERE id = $1 AND deleted_at IS NULL
RETURNING pg_current_xact_id()::text AS xact

-- name: standing
-- Whether an org is suspended; until the transaction ends nobody else changes that.
SELECT name, suspended_at FROM orgs WHERE id = $1 AND deleted_at IS NULL FOR UPDATE

-- name: suspend
-- Suspend an org.
UPDATE orgs SET suspended_at = clock_timestamp() WHERE id = $1 AND suspended_at IS NULL
RETURNING pg_current_xact_id()::text AS xact

-- name: unsuspend
-- Let an org go on.
UPDATE orgs SET suspended_at = NULL WHERE id = $1 AND suspended_at IS NOT NULL
RETURNING pg_current_xact_id()::text AS xact

-- name: list_all
-- Every org, for the operator who asks, in order of its name.
SELECT id::text, name, created_at, suspended_at, members, workspaces
FROM operator_orgs($1, $2, $3, $4)
