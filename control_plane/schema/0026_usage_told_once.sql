-- The usage of an object is told once in whatever order its rows come. Two workers ship when they
-- like, so who retrieves an object may be in the ledger before the call that made it: then it is the
-- maker's row that leaves the usage out, be it that it told of it at once or later. As in 0008 but
-- for that. Whose call is not the one recorded as the maker, keeps its usage still: some vendors let
-- two calls make what has the same id.
CREATE OR REPLACE FUNCTION ledger_append(new_rows json, OUT last_ordinal bigint, OUT inserted bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    meters CONSTANT text[] := ARRAY[
        'usage_source', 'input_tokens', 'cache_read_tokens', 'cache_write_tokens',
        'cache_write_5m_tokens', 'cache_write_1h_tokens', 'output_tokens', 'reasoning_tokens',
        'audio_input_tokens', 'audio_output_tokens', 'image_input_tokens', 'seconds', 'searches',
        'pages', 'flags', 'vendor_usage'
    ];
    rows_due json := new_rows;
BEGIN
    IF position('"metered_object":"' IN new_rows::text) > 0 THEN
        -- Before the claims, as every append: whoever waits here then sees what was committed.
        PERFORM 1 FROM ledger_head FOR UPDATE;
        WITH told AS MATERIALIZED (
            SELECT r.id, r.metered_object, r.metered_vendor_id, r.metered_again, r.ordinality
            FROM ROWS FROM (json_to_recordset(new_rows) AS (
                id uuid, metered_object text, metered_vendor_id uuid, metered_again boolean,
                usage_source text
            )) WITH ORDINALITY AS r (
                id, metered_object, metered_vendor_id, metered_again, usage_source, ordinality
            )
            WHERE r.metered_object IS NOT NULL AND r.usage_source <> 'none'
        )
        INSERT INTO metered_objects (object_id, vendor_id, event_id, by_retrieval)
        SELECT DISTINCT ON (metered_object, metered_vendor_id)
            metered_object, metered_vendor_id, id, coalesce(metered_again, false)
        FROM told
        ORDER BY metered_object, metered_vendor_id, ordinality
        ON CONFLICT DO NOTHING;

        SELECT json_agg(
            CASE WHEN m.event_id IS NULL OR m.event_id = (r.value ->> 'id')::uuid
                OR NOT (
                    coalesce((r.value ->> 'metered_again')::boolean, false)
                    OR (m.by_retrieval AND s.call_id IS NOT NULL)
                )
            THEN r.value
            ELSE (
                SELECT json_object_agg(member.key, member.value)
                FROM (
                    SELECT e.key, e.value FROM json_each(r.value) AS e
                    WHERE e.key <> ALL (meters)
                    UNION ALL SELECT 'usage_source', '"none"'::json
                    UNION ALL SELECT 'flags', '["metered_before"]'::json
                ) AS member
            ) END
            ORDER BY r.ordinality
        ) INTO rows_due
        FROM json_array_elements(new_rows) WITH ORDINALITY AS r (value, ordinality)
        LEFT JOIN metered_objects AS m
            ON r.value ->> 'usage_source' <> 'none'
            AND m.object_id = r.value ->> 'metered_object'
            AND m.vendor_id = (r.value ->> 'metered_vendor_id')::uuid
        LEFT JOIN stored_objects AS s
            ON s.object_id = m.object_id
            AND s.vendor_id = m.vendor_id
            AND s.call_id = (r.value ->> 'call_id')::uuid;
    END IF;
    SELECT a.last_ordinal, a.inserted INTO last_ordinal, inserted
    FROM ledger_append_rows(rows_due) AS a;
END
$$;
