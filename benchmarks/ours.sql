-- name: count_calls
-- How many calls the ledger has; how many ended well with the usage that the vendor told, and how
-- many without any; how many named the model by an alias; how many had a token with a monthly limit,
-- and how many one with a rate window and a cap.
SELECT
    count(*) AS rows,
    count(*) FILTER (
        WHERE status = 'complete' AND usage_source = 'vendor' AND counted
        AND input_tokens = 123 AND output_tokens = 200
    ) AS whole,
    count(*) FILTER (
        WHERE status = 'complete' AND usage_source = 'none'
        AND input_tokens IS NULL AND output_tokens IS NULL
    ) AS unmetered,
    count(*) FILTER (WHERE model_requested LIKE 'fast-%') AS aliased,
    count(l.subject_id) AS limited,
    count(*) FILTER (
        WHERE r.subject_id IS NOT NULL AND c.subject_id IS NOT NULL
    ) AS windowed
FROM usage_events AS e
LEFT JOIN call_limits AS l ON l.kind = 'token' AND l.subject_id = e.token_id
LEFT JOIN rate_limits AS r ON r.kind = 'token' AND r.subject_id = e.token_id
LEFT JOIN concurrency_limits AS c ON c.kind = 'token' AND c.subject_id = e.token_id

-- name: add_tokens
-- Insert tokens that are going to call, each with a monthly limit, a rate window and a cap.
WITH place AS (
    SELECT w.org_id, w.id AS workspace_id, u.id AS user_id
    FROM workspaces AS w JOIN users AS u ON u.org_id = w.org_id
    ORDER BY w.created_at, u.created_at LIMIT 1
),
added AS (
    INSERT INTO tokens (id, digest, hint, org_id, workspace_id, user_id, expires_at)
    SELECT one.id, one.digest, one.hint, place.org_id, place.workspace_id, place.user_id,
        clock_timestamp() + interval '1 day'
    FROM unnest($1::uuid[], $2::bytea[], $3::text[]) AS one (id, digest, hint), place
    RETURNING id, org_id
),
windows AS (
    INSERT INTO rate_limits (kind, subject_id, org_id, calls, window_seconds)
    SELECT 'token', id, org_id, $5, $6 FROM added
),
caps AS (
    INSERT INTO concurrency_limits (kind, subject_id, org_id, calls)
    SELECT 'token', id, org_id, $7 FROM added
)
INSERT INTO call_limits (kind, subject_id, org_id, calls_a_month)
SELECT 'token', id, org_id, $4 FROM added

-- name: fill_tokens
-- Fill the store up to so many tokens with ones that nobody has the text of.
WITH place AS (
    SELECT w.org_id, w.id AS workspace_id, u.id AS user_id
    FROM workspaces AS w JOIN users AS u ON u.org_id = w.org_id
    ORDER BY w.created_at, u.created_at LIMIT 1
)
INSERT INTO tokens (id, digest, hint, org_id, workspace_id, user_id, expires_at)
SELECT gen_random_uuid(), sha256(convert_to($2 || number, 'UTF8')), 'kxg_…fill',
    place.org_id, place.workspace_id, place.user_id, clock_timestamp() + interval '1 day'
FROM place, generate_series(1, $1 - (SELECT count(*) FROM tokens)) AS number

-- name: settle
-- Write what the database holds back, so that no checkpoint of old work falls into a measurement.
CHECKPOINT
