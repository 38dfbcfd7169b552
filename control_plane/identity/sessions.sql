-- Sessions, and who stands behind them.

-- name: find_actor
-- The account of an open session, and what it is in one org; no row: there is no such session.
SELECT
    a.id AS account_id,
    a.email,
    a.is_operator,
    a.totp_enabled_at IS NOT NULL AS has_totp,
    s.authenticated_at,
    s.methods,
    s.last_seen_at < clock_timestamp() - interval '1 minute' AS is_stale,
    member.user_id,
    member.role,
    member.requires_totp,
    coalesce(member.workspace_ids, '{}') AS workspace_ids,
    coalesce(member.workspace_roles, '{}') AS workspace_roles
FROM sessions AS s
JOIN accounts AS a ON a.id = s.account_id
LEFT JOIN LATERAL (
    SELECT
        u.id AS user_id, u.role, o.requires_totp,
        array_agg(m.workspace_id) FILTER (WHERE m.workspace_id IS NOT NULL) AS workspace_ids,
        array_agg(m.role) FILTER (WHERE m.workspace_id IS NOT NULL) AS workspace_roles
    FROM users AS u
    JOIN orgs AS o ON o.id = u.org_id
    LEFT JOIN (
        workspace_members AS m
        JOIN workspaces AS w ON w.id = m.workspace_id AND w.archived_at IS NULL
    ) ON m.user_id = u.id
    WHERE u.account_id = a.id AND u.org_id = $3::uuid
        AND u.disabled_at IS NULL AND u.removed_at IS NULL
        AND o.suspended_at IS NULL AND o.deleted_at IS NULL
    GROUP BY u.id, u.role, o.requires_totp
) AS member ON true
WHERE s.id = $1 AND s.account_id = $2
    AND s.ended_at IS NULL
    AND s.expires_at > clock_timestamp()
    AND s.last_seen_at > clock_timestamp() - $4::interval
    AND a.disabled_at IS NULL

-- name: touch
-- Note that a session is in use.
UPDATE sessions SET last_seen_at = clock_timestamp() WHERE id = $1

-- name: only_org
-- The orgs that an account is a member of, two at most.
SELECT u.org_id
FROM users AS u JOIN orgs AS o ON o.id = u.org_id
WHERE u.account_id = $1 AND u.disabled_at IS NULL AND u.removed_at IS NULL
    AND o.deleted_at IS NULL
ORDER BY u.created_at, u.org_id
LIMIT 2
