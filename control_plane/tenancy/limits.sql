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
INSERT INTO call_limits (kind, subject_id, org_id, calls_a_month) VALUES ($1, $2, $3, $4)
ON CONFLICT (kind, subject_id) DO UPDATE SET calls_a_month = excluded.calls_a_month

-- name: remove_calls_a_month
-- Let a subject call as often as it likes in a month.
DELETE FROM call_limits WHERE kind = $1 AND subject_id = $2

-- name: set_rate
-- Limit the calls that begin within a sliding window, or change the limit.
INSERT INTO rate_limits (kind, subject_id, org_id, calls, window_seconds)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (kind, subject_id)
DO UPDATE SET calls = excluded.calls, window_seconds = excluded.window_seconds

-- name: remove_rate
-- Let calls begin as they come.
DELETE FROM rate_limits WHERE kind = $1 AND subject_id = $2

-- name: set_concurrency
-- Limit the calls that are open at once, or change the limit.
INSERT INTO concurrency_limits (kind, subject_id, org_id, calls) VALUES ($1, $2, $3, $4)
ON CONFLICT (kind, subject_id) DO UPDATE SET calls = excluded.calls

-- name: remove_concurrency
-- Let as many calls be open as there are.
DELETE FROM concurrency_limits WHERE kind = $1 AND subject_id = $2

-- name: changing_transaction
-- This transaction, if it has logged a change.
SELECT pg_current_xact_id()::text
WHERE EXISTS (SELECT FROM change_log WHERE xact = pg_current_xact_id())

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
