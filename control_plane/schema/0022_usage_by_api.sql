-- Usage by API: an org's events in the order of the ledger, and tokens that read them for machines.

CREATE INDEX usage_events_by_org_ordinal ON usage_events (org_id, ordinal);

GRANT SELECT (ledger_id) ON ledger_head TO kaixu_control;

-- Events as billing gets them.
CREATE VIEW usage_feed WITH (security_invoker = true) AS
SELECT
    id, ordinal, call_id, attempt, retry_of, corrects, time, ended_at,
    to_char(month, 'YYYY-MM') AS month, org_id, workspace_id, user_id, token_id, vendor, endpoint,
    client_format, model_requested, model_served, stream, status, http_status, reason, counted,
    usage_source, input_tokens, cache_read_tokens, cache_write_tokens, cache_write_5m_tokens,
    cache_write_1h_tokens, output_tokens, reasoning_tokens, audio_input_tokens,
    audio_output_tokens, image_input_tokens, seconds::double precision AS seconds, searches, pages,
    service_tier, finish_reason, session_id, vendor_request_id, ttfb_ms, duration_ms, bytes_up,
    bytes_down, flags, vendor_usage
FROM usage_events;
GRANT SELECT ON usage_feed TO kaixu_control;

-- Whose token it is that has this digest, and what it may read, where it may do anything from this
-- address: looked up before the org is known.
CREATE FUNCTION find_reader(shown bytea, address inet)
RETURNS TABLE (token_id uuid, org_id uuid, scopes text[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT s.id, s.org_id, s.scopes
    FROM token_standings AS s
    JOIN tokens AS t ON t.id = s.id
    LEFT JOIN tokens AS parent ON parent.id = t.parent_id
    WHERE (
            s.digest = shown
            OR s.id = (
                SELECT r.token_id FROM retired_digests AS r
                WHERE r.digest = shown AND r.until > clock_timestamp()
            )
        )
        AND s.ended IS NULL
        AND s.expires_at > clock_timestamp()
        AND (t.addresses IS NULL OR address <<= ANY (t.addresses))
        AND (parent.addresses IS NULL OR address <<= ANY (parent.addresses));
$$;
REVOKE ALL ON FUNCTION find_reader(bytea, inet) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_reader(bytea, inet) TO kaixu_control;
