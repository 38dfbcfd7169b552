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
    AND s.last_seen_at > clock_timestamp() - CASE
        WHEN a.is_operator OR EXISTS (
            SELECT FROM users AS u
            WHERE u.account_id = a.id AND u.role IN ('owner', 'admin')
                AND u.disabled_at IS NULL AND u.removed_at IS NULL
        ) THEN $5::interval
        ELSE $4::interval
    END
    AND a.disabled_at IS NULL

-- name: is_open
-- Whether a session can be open still.
SELECT EXISTS (
    SELECT FROM sessions
    WHERE id = $1 AND account_id = $2 AND ended_at IS NULL
        AND expires_at > clock_timestamp() AND last_seen_at > clock_timestamp() - $3::interval
)

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

-- name: sign_in_account
-- The account that an address belongs to, as far as signing in needs it.
SELECT * FROM sign_in_account($1)

-- name: open
-- Open a session, unless the account is disabled, has another password or asks for a second factor
-- by now that was not proven. The account's row stays locked to the commit, so that who ends all its
-- sessions ends this one too.
WITH account AS (
    SELECT id FROM accounts
    WHERE id = $2 AND disabled_at IS NULL AND password_hash IS NOT DISTINCT FROM $3
        AND (totp_enabled_at IS NULL OR 'mfa' = ANY ($5::text[]))
    FOR SHARE
)
INSERT INTO sessions (id, account_id, expires_at, methods, address, user_agent)
SELECT $1, id, clock_timestamp() + $4::interval, $5, $6, $7 FROM account
RETURNING created_at, expires_at

-- name: end_surplus
-- End the sessions of an account that were used longest ago, beyond a number.
UPDATE sessions SET ended_at = clock_timestamp(), end_reason = 'surplus'
WHERE id IN (
    SELECT id FROM sessions WHERE account_id = $1 AND ended_at IS NULL
    ORDER BY last_seen_at DESC, id OFFSET $2
)

-- name: forget_old
-- Forget those sessions of an account that were over long ago.
DELETE FROM sessions
WHERE account_id = $1 AND coalesce(ended_at, expires_at) < clock_timestamp() - $2::interval

-- name: rehash
-- Keep a newer hash of the same password.
UPDATE accounts SET password_hash = $3, password_key = $4
WHERE id = $1 AND password_hash = $2
RETURNING true

-- name: prove_again
-- Note that who is behind a session has proven it again.
UPDATE sessions SET authenticated_at = clock_timestamp(), methods = $3
WHERE id = $1 AND account_id = $2 AND ended_at IS NULL
RETURNING authenticated_at

-- name: end
-- End a session of an account.
UPDATE sessions SET ended_at = clock_timestamp(), end_reason = $3
WHERE id = $1 AND account_id = $2 AND ended_at IS NULL
RETURNING id

-- name: end_all
-- End all sessions of an account, but one (null: none) perhaps.
UPDATE sessions SET ended_at = clock_timestamp(), end_reason = $3
WHERE account_id = $1 AND ended_at IS NULL AND id IS DISTINCT FROM $2::uuid
RETURNING id

-- name: list
-- The sessions of an account that are not over, the last one first.
SELECT
    id, created_at, last_seen_at, expires_at, authenticated_at, methods, address, user_agent
FROM sessions
WHERE account_id = $1 AND ended_at IS NULL AND expires_at > clock_timestamp()
    AND last_seen_at > clock_timestamp() - $4::interval
    AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
ORDER BY created_at DESC, id DESC
LIMIT $5
