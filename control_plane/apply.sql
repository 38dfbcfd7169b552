-- What `kaixu apply` compares and changes of an org itself, its workspaces and members.

-- name: orgs
-- The orgs of a name, or of an id.
SELECT
    id, name, requires_totp, extract(epoch FROM token_life_max)::bigint / 86400 AS token_days_max
FROM orgs WHERE (name = $1 OR id::text = $1) AND deleted_at IS NULL FOR UPDATE

-- name: change_org
-- Change what an org asks of its members.
UPDATE orgs SET requires_totp = $2, token_life_max = make_interval(days => $3) WHERE id = $1

-- name: workspaces
-- The workspaces of an org.
SELECT id, name FROM workspaces WHERE org_id = $1 AND archived_at IS NULL ORDER BY name

-- name: add_workspace
-- Add a workspace.
INSERT INTO workspaces (org_id, name) VALUES ($1, $2) RETURNING id

-- name: archive_workspace
-- End a workspace, its tokens included.
UPDATE workspaces SET archived_at = clock_timestamp() WHERE id = $1

-- name: members
-- The members of an org, by e-mail address, with their roles in workspaces.
SELECT
    u.id, a.email, a.email_key, u.role,
    coalesce(
        jsonb_object_agg(m.workspace_id, m.role) FILTER (WHERE m.workspace_id IS NOT NULL), '{}'
    )::text AS workspaces
FROM users AS u
JOIN accounts AS a ON a.id = u.account_id
LEFT JOIN workspace_members AS m ON m.user_id = u.id
WHERE u.org_id = $1 AND u.removed_at IS NULL
GROUP BY u.id, a.email, a.email_key, u.role

-- name: set_role
-- Give a member a role in the org.
UPDATE users SET role = $2 WHERE id = $1

-- name: set_workspace_role
-- Give a member a role in a workspace.
INSERT INTO workspace_members (org_id, workspace_id, user_id, role) VALUES ($1, $2, $3, $4)
ON CONFLICT (workspace_id, user_id) DO UPDATE SET role = EXCLUDED.role

-- name: owners
-- How many can still own an org.
SELECT count(*) FROM users
WHERE org_id = $1 AND role = 'owner' AND disabled_at IS NULL AND removed_at IS NULL
