-- name: by_token
-- A month's sums for each token.
SELECT
    h.token_id::text AS token_id, t.name,
    sum(calls)::bigint AS calls, sum(counted)::bigint AS counted,
    sum(usage_partial)::bigint AS usage_partial, sum(usage_unknown)::bigint AS usage_unknown,
    sum(input_tokens)::bigint AS input_tokens,
    sum(cache_read_tokens)::bigint AS cache_read_tokens,
    sum(cache_write_tokens)::bigint AS cache_write_tokens,
    sum(output_tokens)::bigint AS output_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens
FROM usage_hourly AS h LEFT JOIN tokens AS t ON t.id = h.token_id
WHERE month = $1
GROUP BY h.token_id, t.name HAVING sum(calls) > 0
ORDER BY sum(calls) DESC, h.token_id

-- name: by_vendor
-- A month's sums for each vendor.
SELECT
    vendor,
    sum(calls)::bigint AS calls, sum(counted)::bigint AS counted,
    sum(usage_partial)::bigint AS usage_partial, sum(usage_unknown)::bigint AS usage_unknown,
    sum(input_tokens)::bigint AS input_tokens,
    sum(cache_read_tokens)::bigint AS cache_read_tokens,
    sum(cache_write_tokens)::bigint AS cache_write_tokens,
    sum(output_tokens)::bigint AS output_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens
FROM usage_hourly WHERE month = $1
GROUP BY vendor HAVING sum(calls) > 0
ORDER BY sum(calls) DESC, vendor

-- name: by_model
-- A month's sums for each model, as the vendor named it, or as it was asked for.
SELECT
    coalesce(model_served, model_requested) AS model,
    sum(calls)::bigint AS calls, sum(counted)::bigint AS counted,
    sum(usage_partial)::bigint AS usage_partial, sum(usage_unknown)::bigint AS usage_unknown,
    sum(input_tokens)::bigint AS input_tokens,
    sum(cache_read_tokens)::bigint AS cache_read_tokens,
    sum(cache_write_tokens)::bigint AS cache_write_tokens,
    sum(output_tokens)::bigint AS output_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens
FROM usage_hourly WHERE month = $1
GROUP BY 1 HAVING sum(calls) > 0
ORDER BY sum(calls) DESC, 1

-- name: by_day
-- A month's sums for each UTC day.
SELECT
    to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day,
    sum(calls)::bigint AS calls, sum(counted)::bigint AS counted,
    sum(usage_partial)::bigint AS usage_partial, sum(usage_unknown)::bigint AS usage_unknown,
    sum(input_tokens)::bigint AS input_tokens,
    sum(cache_read_tokens)::bigint AS cache_read_tokens,
    sum(cache_write_tokens)::bigint AS cache_write_tokens,
    sum(output_tokens)::bigint AS output_tokens,
    sum(reasoning_tokens)::bigint AS reasoning_tokens
FROM usage_hourly WHERE month = $1
GROUP BY 1 HAVING sum(calls) > 0
ORDER BY 1

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
