-- What vendors keep under the gateway's key: which org made it, and which row has its usage.

-- The gateway may add to it and read it. An id stays with the org that it was first recorded for.
CREATE TABLE stored_objects (
    object_id text COLLATE "C" NOT NULL CHECK (object_id <> ''),  -- the vendor's
    vendor_id uuid NOT NULL,  -- of `vendors`, which may be gone by now
    kind text NOT NULL,
    parent_id text,  -- of a batch's results: the batch
    org_id uuid NOT NULL,
    workspace_id uuid NOT NULL,
    user_id uuid NOT NULL,
    token_id uuid NOT NULL,
    call_id uuid NOT NULL,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (object_id, vendor_id)
);
CREATE INDEX stored_objects_by_org ON stored_objects (org_id, kind, made_at);
CREATE INDEX stored_objects_by_time ON stored_objects (made_at);

-- The one event that tells the usage of an object, whoever asks for it again.
CREATE TABLE metered_objects (
    object_id text COLLATE "C" NOT NULL,
    vendor_id uuid NOT NULL,
    event_id uuid NOT NULL,
    by_retrieval boolean NOT NULL,  -- the event is not that of the call which made the object
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (object_id, vendor_id)
);
CREATE INDEX metered_objects_by_time ON metered_objects (at);

-- Rows may name the object whose usage they tell. The first one has it: claim and row are of one
-- transaction, and appends follow one another, so there is no moment between the two. From later
-- ones the usage is left out; a row that is sent again holds its own claim. Two calls that each
-- made something were two calls, though their vendor gave both the same id: some let the client
-- choose it. So a call that made something keeps its usage, whoever else told of that id, unless it
-- left that for later and is the one that made the very object which was retrieved meanwhile.
ALTER FUNCTION ledger_append(json) RENAME TO ledger_append_rows;
REVOKE ALL ON FUNCTION ledger_append_rows(json) FROM kaixu_gateway;

CREATE FUNCTION ledger_append(new_rows json, OUT last_ordinal bigint, OUT inserted bigint)
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
            ON (r.value ->> 'metered_deferred')::boolean
            AND s.object_id = m.object_id
            AND s.vendor_id = m.vendor_id
            AND s.call_id = (r.value ->> 'call_id')::uuid;
    END IF;
    SELECT a.last_ordinal, a.inserted INTO last_ordinal, inserted
    FROM ledger_append_rows(rows_due) AS a;
END
$$;

-- Forget, some at a time, what vendors have forgotten long before: they keep responses for 30 days.
-- Who asks for such an object then gets a 404. Files, batches and conversations stay.
CREATE FUNCTION prune_stored_objects() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH old AS (
        SELECT object_id, vendor_id FROM stored_objects
        WHERE made_at < clock_timestamp() - interval '90 days'
            AND kind IN (
                'response', 'item', 'chat.completion', 'container', 'interaction', 'upload'
            )
        ORDER BY made_at LIMIT 10000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM stored_objects AS s USING old
        WHERE s.object_id = old.object_id AND s.vendor_id = old.vendor_id
        RETURNING s.object_id
    ), unclaimed AS (
        SELECT m.object_id, m.vendor_id FROM metered_objects AS m
        WHERE m.at < clock_timestamp() - interval '120 days' AND NOT EXISTS (
            SELECT FROM stored_objects AS s
            WHERE s.object_id = m.object_id AND s.vendor_id = m.vendor_id
        )
        ORDER BY m.at LIMIT 10000
    ), forgotten AS (
        DELETE FROM metered_objects AS m USING unclaimed AS u
        WHERE m.object_id = u.object_id AND m.vendor_id = u.vendor_id
        RETURNING m.object_id
    )
    SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM forgotten);
$$;

REVOKE ALL ON FUNCTION ledger_append(json), ledger_append_rows(json), prune_stored_objects()
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_append(json), prune_stored_objects() TO kaixu_gateway;
GRANT SELECT, INSERT ON stored_objects TO kaixu_gateway;
