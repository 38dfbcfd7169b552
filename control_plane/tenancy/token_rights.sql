-- What decides about what a member may give a token.

-- name: workspaces
-- The workspaces of an org that are in use, of these (null: of all); two are enough to know. Until
-- the transaction ends they stay so: whoever takes one away locks it before its members.
SELECT id FROM workspaces
WHERE org_id = $1 AND archived_at IS NULL AND ($2::uuid[] IS NULL OR id = ANY ($2))
ORDER BY id LIMIT 2
FOR KEY SHARE

-- name: hold_member
-- Keep a member who is active, and where they are, as they are until the transaction ends.
SELECT true FROM users
WHERE org_id = $1 AND id = $2 AND disabled_at IS NULL AND removed_at IS NULL
FOR SHARE

-- name: may_be_holder
-- Whether a member may have a token in a workspace.
SELECT
    u.role IN ('owner', 'admin') OR EXISTS (
        SELECT FROM workspace_members AS m WHERE m.user_id = u.id AND m.workspace_id = $3
    ) AS is_there
FROM users AS u
WHERE u.org_id = $1 AND u.id = $2

-- name: ceilings
-- The limits that hold for a user in a workspace, whatever its token says; nulls: none.
SELECT
    (
        SELECT min(calls_a_month) FROM call_limits
        WHERE (kind, subject_id) IN (('org', $1), ('workspace', $2), ('user', $3))
    ) AS calls_a_month,
    r.calls AS rate_calls, r.window_seconds AS rate_window_seconds, c.calls AS concurrency
FROM (VALUES (true)) AS one (row)
LEFT JOIN rate_limits AS r ON r.kind = 'org' AND r.subject_id = $1
LEFT JOIN concurrency_limits AS c ON c.kind = 'org' AND c.subject_id = $1
