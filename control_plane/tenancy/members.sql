-- The members of an org: rows of `users` that have not left it.

-- name: list
-- Members in order of address and id, from a place on; `search` is a part of address or name.
SELECT
    u.id::text, u.name, u.role, a.email, u.account_id IS NOT NULL AS is_person,
    u.disabled_at, u.created_at, lower(coalesce(a.email, u.name)) AS place
FROM users AS u LEFT JOIN accounts AS a ON a.id = u.account_id
WHERE u.org_id = $1 AND u.removed_at IS NULL
    AND ($2::text IS NULL
        OR strpos(lower(u.name), lower($2)) > 0
        OR strpos(lower(coalesce(a.email, '')), lower($2)) > 0)
    AND ($4::uuid IS NULL
        OR (lower(coalesce(a.email, u.name)) COLLATE "C", u.id) > ($3, $4))
ORDER BY lower(coalesce(a.email, u.name)) COLLATE "C", u.id
LIMIT $5

-- name: read
-- A member.
SELECT
    u.id::text, u.name, u.role, a.email, u.account_id IS NOT NULL AS is_person,
    u.disabled_at, u.created_at
FROM users AS u LEFT JOIN accounts AS a ON a.id = u.account_id
WHERE u.org_id = $1 AND u.id = $2 AND u.removed_at IS NULL

-- name: lock
-- A member and all owners of the org, in one order: until the transaction ends nobody changes them.
SELECT id, role, account_id IS NOT NULL AND disabled_at IS NULL AS is_active, disabled_at
FROM users
WHERE org_id = $1 AND removed_at IS NULL AND (id = $2 OR role = 'owner')
ORDER BY id
FOR UPDATE

-- name: set_role
-- Give a member another role.
UPDATE users SET role = $3 WHERE org_id = $1 AND id = $2 AND removed_at IS NULL

-- name: disable
-- Disable a member that is not.
UPDATE users SET disabled_at = clock_timestamp()
WHERE org_id = $1 AND id = $2 AND removed_at IS NULL AND disabled_at IS NULL
RETURNING pg_current_xact_id()::text AS xact

-- name: enable
-- Let a member in again.
UPDATE users SET disabled_at = NULL
WHERE org_id = $1 AND id = $2 AND removed_at IS NULL AND disabled_at IS NOT NULL
RETURNING pg_current_xact_id()::text AS xact

-- name: remove
-- Take a member out of the org; the row stays, for the ledger names it.
UPDATE users
SET removed_at = clock_timestamp(), disabled_at = coalesce(disabled_at, clock_timestamp())
WHERE org_id = $1 AND id = $2 AND removed_at IS NULL
RETURNING pg_current_xact_id()::text AS xact

-- name: remove_from_workspaces
-- Take a member out of every workspace.
DELETE FROM workspace_members WHERE org_id = $1 AND user_id = $2

-- name: stand_for_tokens
-- In the log of changes the member stands for the tokens that end in this transaction.
SELECT set_config('kaixu.revocation_scope', 'user', true)

-- name: revoke_tokens
-- End the tokens of a member who leaves: they don't come back with who is invited again.
UPDATE tokens SET revoked_at = clock_timestamp()
WHERE org_id = $1 AND user_id = $2 AND revoked_at IS NULL
