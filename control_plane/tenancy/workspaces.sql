-- Workspaces, and who is in them.

-- name: list
-- Workspaces that live, in order of name and id, from a place on; of these ids, or (null) all.
SELECT id::text, name, created_at FROM workspaces
WHERE org_id = $1 AND archived_at IS NULL
    AND ($2::uuid[] IS NULL OR id = ANY ($2))
    AND ($4::uuid IS NULL OR (name COLLATE "C", id) > ($3, $4))
ORDER BY name COLLATE "C", id
LIMIT $5

-- name: read
-- A workspace that lives.
SELECT id::text, name, created_at FROM workspaces
WHERE org_id = $1 AND id = $2 AND archived_at IS NULL

-- name: read_locked
-- Likewise; until the transaction ends nobody else changes it.
SELECT id::text, name, created_at FROM workspaces
WHERE org_id = $1 AND id = $2 AND archived_at IS NULL
FOR UPDATE

-- name: count
-- How many workspaces an org has.
SELECT count(*) FROM workspaces WHERE org_id = $1 AND archived_at IS NULL

-- name: create
-- Insert a workspace; no row where the name is taken.
INSERT INTO workspaces (org_id, name) VALUES ($1, $2)
ON CONFLICT (org_id, name) WHERE archived_at IS NULL DO NOTHING
RETURNING id::text, name, created_at

-- name: rename
-- Give a workspace another name.
UPDATE workspaces SET name = $3 WHERE org_id = $1 AND id = $2 AND archived_at IS NULL

-- name: delete
-- End a workspace; the row stays, for the ledger names it.
UPDATE workspaces SET archived_at = clock_timestamp()
WHERE org_id = $1 AND id = $2 AND archived_at IS NULL
RETURNING pg_current_xact_id()::text AS xact

-- name: list_members
-- Who is in a workspace, in order of address and id, from a place on.
SELECT
    u.id::text AS user_id, u.name, a.email, m.role, m.created_at,
    lower(coalesce(a.email, u.name)) AS place
FROM workspace_members AS m
JOIN users AS u ON u.id = m.user_id AND u.org_id = m.org_id
LEFT JOIN accounts AS a ON a.id = u.account_id
WHERE m.org_id = $1 AND m.workspace_id = $2 AND u.removed_at IS NULL
    AND ($4::uuid IS NULL
        OR (lower(coalesce(a.email, u.name)) COLLATE "C", u.id) > ($3, $4))
ORDER BY lower(coalesce(a.email, u.name)) COLLATE "C", u.id
LIMIT $5

-- name: read_member
-- One who is in a workspace.
SELECT u.id::text AS user_id, u.name, a.email, m.role, m.created_at
FROM workspace_members AS m
JOIN users AS u ON u.id = m.user_id AND u.org_id = m.org_id
LEFT JOIN accounts AS a ON a.id = u.account_id
WHERE m.org_id = $1 AND m.workspace_id = $2 AND m.user_id = $3 AND u.removed_at IS NULL

-- name: lock_user
-- What a member of the org is in it; until the transaction ends nobody else changes that.
SELECT role FROM users WHERE org_id = $1 AND id = $2 AND removed_at IS NULL FOR UPDATE

-- name: put_member
-- Make a member of the org one of the workspace, or something else there.
INSERT INTO workspace_members AS m (org_id, workspace_id, user_id, role) VALUES ($1, $2, $3, $4)
ON CONFLICT (workspace_id, user_id) DO UPDATE SET role = excluded.role

-- name: remove_member
-- Take someone out of a workspace.
DELETE FROM workspace_members WHERE org_id = $1 AND workspace_id = $2 AND user_id = $3

-- name: revoke_tokens
-- End the tokens that a user has in a workspace; the transaction's id finds their changes.
WITH ended AS (
    UPDATE tokens SET revoked_at = clock_timestamp()
    WHERE org_id = $1 AND workspace_id = $2 AND user_id = $3 AND revoked_at IS NULL
    RETURNING id
)
SELECT pg_current_xact_id()::text AS xact FROM ended LIMIT 1
