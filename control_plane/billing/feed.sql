-- name: ledger_id
-- Which ledger this is; a restored one gets another id.
SELECT ledger_id::text FROM ledger_head

-- name: find
-- Whether the ledger has exactly this row.
SELECT true FROM usage_events WHERE id = $2 AND ordinal = $1

-- name: read
-- The next events in the order in which they were committed.
SELECT
    id::text, ordinal, call_id::text, attempt, retry_of::text, corrects::text, time, ended_at,
    to_char(month, 'YYYY-MM') AS month, org_id::text, workspace_id::text, user_id::text,
    token_id::text, vendor, endpoint, client_format, model_requested, model_served, stream, status,
    http_status, reason, counted, usage_source, input_tokens, cache_read_tokens,
    cache_write_tokens, cache_write_5m_tokens, cache_write_1h_tokens, output_tokens,
    reasoning_tokens, audio_input_tokens, audio_output_tokens, image_input_tokens,
    seconds::double precision, searches, pages, service_tier, finish_reason, session_id,
    vendor_request_id, ttfb_ms, duration_ms, bytes_up, bytes_down, flags, vendor_usage
FROM usage_events
WHERE ordinal > $1
ORDER BY ordinal
LIMIT $2
