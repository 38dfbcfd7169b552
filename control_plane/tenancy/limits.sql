-- Limits on how much a subject may call.

-- name: org_of
-- The org that a subject is of, or is; null: there is no such subject.
SELECT CASE $1::text
    WHEN 'token' THEN (SELECT org_id FROM tokens WHERE id = $2::uuid)
    WHEN 'user' THEN (SELECT org_id FROM users WHERE id = $2::uuid)
    WHEN 'workspace' THEN (SELECT org_id FROM workspaces WHERE id = $2::uuid)
    WHEN 'org' THEN (SELECT id FROM orgs WHERE id = $2::uuid)
END::text

-- name: default_org
-- The org of a gateway that has one.
SELECT id::text FROM orgs ORDER BY created_at, id LIMIT 1

-- name: set_calls_a_month
-- Limit the calls of a month, or change the limit.
INSERT INTO call_limits (kind, subject_id, org_id, set_by_operator, calls_a_month)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (kind, subject_id) DO UPDATE SET
    calls_a_month = excluded.calls_a_month,
    set_by_operator = call_limits.set_by_operator OR excluded.set_by_operator

-- name: remove_calls_a_month
-- Let a subject call as often as it likes in a month.
DELETE FROM call_limits WHERE kind = $1 AND subject_id = $2

-- name: set_rate
-- Limit the calls that begin within a sliding window, or change the limit.
INSERT INTO rate_limits (kind, subject_id, org_id, set_by_operator, calls, window_seconds)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (kind, subject_id) DO UPDATE SET
    calls = excluded.calls,
    window_seconds = excluded.window_seconds,
    set_by_operator = rate_limits.set_by_operator OR excluded.set_by_operator

-- name: remove_rate
-- Let calls begin as they come.
DELETE FROM rate_limits WHERE kind = $1 AND subject_id = $2

-- name: set_concurrency
-- Limit the calls that are open at once, or change the limit.
INSERT INTO concurrency_limits (kind, subject_id, org_id, set_by_operator, calls)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (kind, subject_id) DO UPDATE SET
    calls = excluded.calls,
    set_by_operator = concurrency_limits.set_by_operator OR excluded.set_by_operator

-- name: remove_concurrency
-- Let as many calls be open as there are.
DELETE FROM concurrency_limits WHERE kind = $1 AND subject_id = $2

-- name: changing_transaction
-- This transaction, if it has logged a change.
SELECT pg_current_xact_id()::text
WHERE EXISTS (SELECT FROM change_log WHERE xact = pg_current_xact_id())

-- name: find
-- What a subject may do; nulls where a limit is not set.
SELECT
    month.calls_a_month AS "limit", rate.calls AS rate_calls,
    rate.window_seconds AS rate_window_seconds, open.calls AS concurrency
FROM (VALUES ($1::text, $2::uuid)) AS subject (kind, subject_id)
LEFT JOIN call_limits AS month USING (kind, subject_id)
LEFT JOIN rate_limits AS rate USING (kind, subject_id)
LEFT JOIN concurrency_limits AS open USING (kind, subject_id)

-- name: find_of_operator
-- The limits of a subject that whoever runs the installation has set; nulls where there are none.
SELECT
    month.calls_a_month, rate.calls AS rate_calls, rate.window_seconds AS rate_window_seconds,
    open.calls AS concurrency
FROM (VALUES ($1::text, $2::uuid)) AS subject (kind, subject_id)
LEFT JOIN call_limits AS month
    ON (month.kind, month.subject_id) = ($1, $2) AND month.set_by_operator
LEFT JOIN rate_limits AS rate
    ON (rate.kind, rate.subject_id) = ($1, $2) AND rate.set_by_operator
LEFT JOIN concurrency_limits AS open
    ON (open.kind, open.subject_id) = ($1, $2) AND open.set_by_operator

-- name: hold
-- Keep others from changing a subject's limits until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('limits ' || $1::text || ' ' || $2::text, 0))

-- name: place
-- Where a subject of an org is, and whose it is; no row: it is not there.
SELECT workspace_id, user_id FROM tokens WHERE $1::text = 'token' AND org_id = $2 AND id = $3
UNION ALL
SELECT NULL, id FROM users
WHERE $1::text = 'user' AND org_id = $2 AND id = $3 AND removed_at IS NULL
UNION ALL
SELECT id, NULL FROM workspaces WHERE $1::text = 'workspace' AND org_id = $2 AND id = $3
UNION ALL
SELECT NULL, NULL FROM orgs WHERE $1::text = 'org' AND id = $2 AND id = $3

-- name: page
-- Some of an org's limits: all, or those of workspaces, of a user and of the tokens that it may see.
SELECT
    subject.kind, subject.subject_id::text, month.calls_a_month AS "limit",
    rate.calls AS rate_calls, rate.window_seconds AS rate_window_seconds,
    open.calls AS concurrency
FROM (
    SELECT kind, subject_id FROM call_limits WHERE org_id = $1
    UNION SELECT kind, subject_id FROM rate_limits WHERE org_id = $1
    UNION SELECT kind, subject_id FROM concurrency_limits WHERE org_id = $1
) AS subject
LEFT JOIN call_limits AS month USING (kind, subject_id)
LEFT JOIN rate_limits AS rate USING (kind, subject_id)
LEFT JOIN concurrency_limits AS open USING (kind, subject_id)
WHERE ($2::text IS NULL OR subject.kind = $2)
    AND (
        $3::uuid[] IS NULL
        OR subject.kind = 'workspace' AND subject.subject_id = ANY ($3)
        OR subject.kind = 'user' AND subject.subject_id = $4
        OR subject.kind = 'token' AND EXISTS (
            SELECT FROM tokens AS t
            WHERE t.org_id = $1 AND t.id = subject.subject_id
                AND (t.user_id = $4 OR t.workspace_id = ANY ($5))
        )
    )
    AND ($6::text IS NULL OR (subject.kind COLLATE "C", subject.subject_id) > ($6, $7::uuid))
ORDER BY subject.kind COLLATE "C", subject.subject_id
LIMIT $8

-- name: list
-- What every subject that has a limit may do; nulls where a limit is not set.
SELECT
    subject.kind, subject.subject_id::text, month.calls_a_month AS "limit",
    rate.calls AS rate_calls, rate.window_seconds AS rate_window_seconds,
    open.calls AS concurrency
FROM (
    SELECT kind, subject_id FROM call_limits
    UNION SELECT kind, subject_id FROM rate_limits
    UNION SELECT kind, subject_id FROM concurrency_limits
) AS subject
LEFT JOIN call_limits AS month USING (kind, subject_id)
LEFT JOIN rate_limits AS rate USING (kind, subject_id)
LEFT JOIN concurrency_limits AS open USING (kind, subject_id)
ORDER BY subject.kind COLLATE "C", subject.subject_id
