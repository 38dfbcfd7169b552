-- name: default_holder
-- The first workspace and user of the default org: whose the tokens are that commands make.
SELECT w.org_id, w.id AS workspace_id, u.id AS user_id
FROM workspaces AS w
JOIN users AS u ON u.org_id = w.org_id
WHERE w.org_id = (SELECT id FROM orgs ORDER BY created_at, id LIMIT 1)
ORDER BY w.created_at, w.id, u.created_at, u.id
LIMIT 1

-- name: life_max
-- How long an org lets a token live: until the transaction ends it stays so, and nobody ends all of
-- the org's tokens. Asked before a token is locked: those who do either take the org first.
SELECT token_life_max FROM orgs WHERE id = $1 FOR SHARE

-- name: create
-- Insert a token, dated by the database's clock; a child ends with its parent at the latest.
INSERT INTO tokens (
    id, digest, hint, name, org_id, workspace_id, user_id, parent_id, created_by, scopes, models,
    vendors, addresses, expires_at
) VALUES (
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
    least(clock_timestamp() + $14, (SELECT expires_at FROM tokens WHERE id = $8))
)
RETURNING id::text, name, hint, scopes, models, created_at, expires_at

-- name: renew
-- Move the expiry of a token that its owner keeps alive; a revoked one stays revoked.
UPDATE tokens AS t SET expires_at = clock_timestamp() + least($2, o.token_life_max)
FROM orgs AS o WHERE t.digest = $1 AND o.id = t.org_id
RETURNING t.revoked_at

-- name: any_exists
-- Whether there is, or ever was, a token.
SELECT EXISTS (SELECT FROM tokens)

-- name: list
-- Every token, newest first; what the default org has of them.
SELECT
    t.id::text, t.name, t.hint, t.parent_id::text, t.scopes, t.models, t.vendors,
    t.addresses::text[] AS addresses,
    l.calls_a_month AS "limit", r.calls || '/' || r.window_seconds || 's' AS rate,
    c.calls AS concurrency, t.created_at, t.expires_at, t.revoked_at,
    CASE
        WHEN t.revoked_at IS NOT NULL THEN 'revoked'
        WHEN t.expires_at <= clock_timestamp() THEN 'expired'
        ELSE 'live'
    END AS state
FROM tokens AS t
LEFT JOIN call_limits AS l ON l.kind = 'token' AND l.subject_id = t.id
LEFT JOIN rate_limits AS r ON r.kind = 'token' AND r.subject_id = t.id
LEFT JOIN concurrency_limits AS c ON c.kind = 'token' AND c.subject_id = t.id
ORDER BY t.created_at DESC, t.id DESC

-- name: revoke
-- End a token that has not been ended before; the transaction's id finds its change.
UPDATE tokens SET revoked_at = clock_timestamp() WHERE id = $1 AND revoked_at IS NULL
RETURNING org_id, pg_current_xact_id()::text AS xact

-- name: earlier_change
-- The change that ended a token earlier; without an ordinal where the log was pruned since.
SELECT c.ordinal, coalesce(c.at, t.revoked_at) AS at
FROM tokens AS t
LEFT JOIN LATERAL (
    SELECT ordinal, at FROM change_log
    WHERE kind = 'token' AND subject_id = t.id AND effect = 'dead'
    ORDER BY ordinal DESC LIMIT 1
) AS c ON true
WHERE t.id = $1
