-- name: report
-- A month's sums for each of what $5 names: of an org (null: of all), in some workspaces (null: in
-- any) or a user's. At most $6 of them (null: all), those with the most calls first; days and hours
-- in their order.
WITH sums AS (
    SELECT
        CASE $5::text
            WHEN 'token' THEN token_id::text
            WHEN 'user' THEN user_id::text
            WHEN 'workspace' THEN workspace_id::text
            WHEN 'vendor' THEN vendor
            -- As the vendor named it, or as it was asked for.
            WHEN 'model' THEN coalesce(model_served, model_requested)
            WHEN 'day' THEN to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD')
            WHEN 'hour' THEN to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
        END AS key,
        sum(calls)::bigint AS calls,
        sum(counted)::bigint AS counted,
        sum(usage_partial)::bigint AS usage_partial,
        sum(usage_unknown)::bigint AS usage_unknown,
        sum(input_tokens)::bigint AS input_tokens,
        sum(cache_read_tokens)::bigint AS cache_read_tokens,
        sum(cache_write_tokens)::bigint AS cache_write_tokens,
        sum(output_tokens)::bigint AS output_tokens,
        sum(reasoning_tokens)::bigint AS reasoning_tokens
    FROM usage_hourly
    WHERE month = $1
        AND ($2::uuid IS NULL OR org_id = $2)
        AND ($3::uuid[] IS NULL OR workspace_id = ANY ($3) OR user_id = $4)
    GROUP BY 1
    HAVING sum(calls) > 0
    ORDER BY CASE WHEN $5 IN ('day', 'hour') THEN 0 ELSE -sum(calls) END, 1
    LIMIT $6
)
SELECT sums.*, coalesce(t.name, u.name, w.name) AS name
FROM sums
LEFT JOIN tokens AS t ON t.id = CASE $5 WHEN 'token' THEN sums.key::uuid END
LEFT JOIN users AS u ON u.id = CASE $5 WHEN 'user' THEN sums.key::uuid END
LEFT JOIN workspaces AS w ON w.id = CASE $5 WHEN 'workspace' THEN sums.key::uuid END
ORDER BY CASE WHEN $5 IN ('day', 'hour') THEN 0 ELSE -sums.calls END, sums.key

-- name: sealed_through
-- Up to when every call has its row: the oldest call that some worker has not shipped yet.
-- A worker that ended and left some in its journal counts until somebody has recovered it.
-- A worker looks at its calls before a heartbeat is dated, and dates calls by the early edge of what
-- it knows of this clock. Each is apart by a round trip at most, which it bounds to a quarter of the
-- lease: so long before a heartbeat, a call may lack its row that the heartbeat does not tell of.
SELECT coalesce(
    least(
        min(unshipped_since),
        min(heartbeat_at - lease / 2) FILTER (WHERE ended_at IS NULL)
    ),
    now()
)
FROM workers

-- name: this_month
-- The UTC month that the database is in.
SELECT date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC')::date
