-- The ledger: every call's usage, once, in an order without gaps; and its sums by the hour.

-- One row, locked by whoever appends until its commit: ordinals appear in order, gaps never fill.
CREATE TABLE ledger_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    ledger_id uuid NOT NULL DEFAULT gen_random_uuid(),
    last bigint NOT NULL
);
INSERT INTO ledger_head (last) VALUES (0);

-- A usage event, append-only. A correction is a row of its own, which names the one it replaces.
-- Only what a lost machine left behind ('unaccounted') may lack whom and what it was for.
CREATE TABLE usage_events (
    id uuid PRIMARY KEY,  -- version 7: the time of admission comes first
    ordinal bigint NOT NULL,
    call_id uuid NOT NULL,
    attempt integer NOT NULL DEFAULT 1,
    retry_of uuid,
    corrects uuid,
    time timestamptz NOT NULL,  -- admitted
    ended_at timestamptz,
    month date NOT NULL CHECK (extract(day FROM month) = 1),
    org_id uuid NOT NULL,
    workspace_id uuid,
    user_id uuid,
    token_id uuid,
    vendor text,
    endpoint text,
    client_format text,
    model_requested text,
    model_served text,
    stream boolean,
    status text NOT NULL CHECK (status IN (
        'complete', 'client_closed', 'revoked', 'deadline', 'vendor_error', 'vendor_broke',
        'interrupted', 'unaccounted'
    )),
    http_status integer,
    reason text,
    counted boolean NOT NULL,
    usage_source text NOT NULL CHECK (usage_source IN ('vendor', 'partial', 'none')),
    input_tokens bigint CHECK (input_tokens >= 0),
    cache_read_tokens bigint CHECK (cache_read_tokens >= 0),
    cache_write_tokens bigint CHECK (cache_write_tokens >= 0),
    cache_write_5m_tokens bigint CHECK (cache_write_5m_tokens >= 0),
    cache_write_1h_tokens bigint CHECK (cache_write_1h_tokens >= 0),
    output_tokens bigint CHECK (output_tokens >= 0),
    reasoning_tokens bigint CHECK (reasoning_tokens >= 0),
    audio_input_tokens bigint CHECK (audio_input_tokens >= 0),
    audio_output_tokens bigint CHECK (audio_output_tokens >= 0),
    image_input_tokens bigint CHECK (image_input_tokens >= 0),
    seconds numeric CHECK (seconds >= 0),
    searches bigint CHECK (searches >= 0),
    pages bigint CHECK (pages >= 0),
    service_tier text,
    finish_reason text,
    session_id text,
    vendor_request_id text,
    ttfb_ms double precision,
    duration_ms double precision,
    bytes_up bigint,
    bytes_down bigint,
    flags text[] NOT NULL DEFAULT '{}',
    vendor_usage json,  -- not jsonb: as the vendor wrote it
    CHECK (
        status = 'unaccounted'
        OR num_nulls(workspace_id, user_id, token_id, vendor, endpoint, client_format) = 0
    )
) PARTITION BY RANGE (id);
CREATE INDEX usage_events_by_ordinal ON usage_events (ordinal, id);
CREATE INDEX usage_events_by_org ON usage_events (org_id, time);
CREATE INDEX usage_events_by_token ON usage_events (token_id, time);
CREATE INDEX usage_events_by_corrected ON usage_events (corrects) WHERE corrects IS NOT NULL;

-- What no month takes: ids from clocks gone wild. `housekeep` counts them.
CREATE TABLE usage_events_default PARTITION OF usage_events DEFAULT;

-- Sums over the events of an hour, corrections included. A null sum: no event said that number.
CREATE TABLE usage_hourly (
    month date NOT NULL,
    hour timestamptz NOT NULL,
    org_id uuid NOT NULL,
    workspace_id uuid,
    user_id uuid,
    token_id uuid,
    vendor text COLLATE "C",
    model_requested text COLLATE "C",
    model_served text COLLATE "C",
    calls bigint NOT NULL,  -- 0 where all were corrected to another row
    counted bigint NOT NULL,  -- of the calls: took a unit of the allowances
    usage_partial bigint NOT NULL,  -- of the calls: cut off, the sums have what was told until then
    usage_unknown bigint NOT NULL,  -- of the calls: generated something of which nothing was told
    input_tokens bigint,
    cache_read_tokens bigint,
    cache_write_tokens bigint,
    cache_write_5m_tokens bigint,
    cache_write_1h_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    audio_input_tokens bigint,
    audio_output_tokens bigint,
    image_input_tokens bigint,
    seconds numeric,
    searches bigint,
    pages bigint,
    UNIQUE NULLS NOT DISTINCT (
        month, hour, org_id, workspace_id, user_id, token_id, vendor, model_requested, model_served
    )
);
CREATE INDEX usage_hourly_by_org ON usage_hourly (org_id, month);

-- Rows that no ledger could take, as they came: each is a call that an operator must look at.
CREATE TABLE ledger_rejected (
    id uuid PRIMARY KEY,  -- digest of the row
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    content text NOT NULL,
    sqlstate text NOT NULL,
    message text NOT NULL
);

-- The id of the correction of an event: always the same one, and in the event's own partition.
CREATE FUNCTION correction_id(event_id uuid) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (
        left(event_id::text, 15) || substr(digest, 1, 3) || '-8' || substr(digest, 4, 3)
        || '-' || substr(digest, 7, 12)
    )::uuid
    FROM (SELECT md5('correction of ' || event_id::text)) AS d (digest);
$$;

-- Append usage events, each once, whatever is sent again; numbers those that are new. A true end
-- that comes after a supposed one ('interrupted', 'unaccounted') becomes its correction.
CREATE FUNCTION ledger_append(new_rows json, OUT last_ordinal bigint, OUT inserted bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    head bigint;
BEGIN
    -- Until the commit nobody else appends; each statement below sees what the last one committed.
    SELECT h.last INTO STRICT head FROM ledger_head AS h FOR UPDATE;
    WITH incoming AS MATERIALIZED (
        SELECT DISTINCT ON (r.id) r.*
        FROM ROWS FROM (json_to_recordset(new_rows) AS (
            id uuid, call_id uuid, attempt integer, retry_of uuid, time timestamptz,
            ended_at timestamptz, month text, org_id uuid, workspace_id uuid, user_id uuid,
            token_id uuid, vendor text, endpoint text, client_format text, model_requested text,
            model_served text, stream boolean, status text, http_status integer, reason text,
            counted boolean, usage_source text, input_tokens bigint, cache_read_tokens bigint,
            cache_write_tokens bigint, cache_write_5m_tokens bigint, cache_write_1h_tokens bigint,
            output_tokens bigint, reasoning_tokens bigint, audio_input_tokens bigint,
            audio_output_tokens bigint, image_input_tokens bigint, seconds numeric,
            searches bigint, pages bigint, service_tier text, finish_reason text, session_id text,
            vendor_request_id text, ttfb_ms double precision, duration_ms double precision,
            bytes_up bigint, bytes_down bigint, flags text[], vendor_usage json
        )) WITH ORDINALITY AS r
        ORDER BY r.id, r.status IN ('interrupted', 'unaccounted'), r.ordinality
    ), fresh AS (
        SELECT
            i.*,
            old.id AS corrects,
            CASE WHEN old.id IS NULL THEN i.id ELSE correction_id(i.id) END AS event_id,
            head + row_number() OVER (ORDER BY i.ordinality) AS ordinal
        FROM incoming AS i
        -- LATERAL with a LIMIT: one look into the index of one partition for each row, always.
        LEFT JOIN LATERAL (
            SELECT e.id, e.status FROM usage_events AS e WHERE e.id = i.id LIMIT 1
        ) AS old ON true
        LEFT JOIN LATERAL (
            SELECT e.id FROM usage_events AS e
            WHERE old.id IS NOT NULL AND e.id = correction_id(i.id) LIMIT 1
        ) AS correction ON true
        WHERE old.id IS NULL OR (
            old.status IN ('interrupted', 'unaccounted')
            AND i.status NOT IN ('interrupted', 'unaccounted')
            AND correction.id IS NULL
        )
    ), appended AS (
        INSERT INTO usage_events (
            id, ordinal, call_id, attempt, retry_of, corrects, time, ended_at, month,
            org_id, workspace_id, user_id, token_id, vendor, endpoint, client_format,
            model_requested, model_served, stream, status, http_status, reason, counted,
            usage_source, input_tokens, cache_read_tokens, cache_write_tokens,
            cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens,
            audio_input_tokens, audio_output_tokens, image_input_tokens, seconds, searches, pages,
            service_tier, finish_reason, session_id, vendor_request_id, ttfb_ms, duration_ms,
            bytes_up, bytes_down, flags, vendor_usage
        )
        SELECT
            event_id, ordinal, call_id, coalesce(attempt, 1), retry_of, corrects, time, ended_at,
            (month || '-01')::date, org_id, workspace_id, user_id, token_id, vendor, endpoint,
            client_format, model_requested, model_served, stream, status, http_status, reason,
            counted, usage_source, input_tokens, cache_read_tokens, cache_write_tokens,
            cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens,
            audio_input_tokens, audio_output_tokens, image_input_tokens, seconds, searches, pages,
            service_tier, finish_reason, session_id, vendor_request_id, ttfb_ms, duration_ms,
            bytes_up, bytes_down, coalesce(flags, '{}'), vendor_usage
        FROM fresh
        RETURNING *
    ), change AS (
        SELECT 1 AS sign, a.* FROM appended AS a
        UNION ALL
        SELECT -1, old.* FROM appended AS a
        CROSS JOIN LATERAL (SELECT e.* FROM usage_events AS e WHERE e.id = a.corrects LIMIT 1) AS old
        WHERE a.corrects IS NOT NULL
    ), summed AS (
        INSERT INTO usage_hourly AS h (
            month, hour, org_id, workspace_id, user_id, token_id, vendor, model_requested,
            model_served, calls, counted, usage_partial, usage_unknown, input_tokens,
            cache_read_tokens, cache_write_tokens, cache_write_5m_tokens, cache_write_1h_tokens,
            output_tokens, reasoning_tokens, audio_input_tokens, audio_output_tokens,
            image_input_tokens, seconds, searches, pages
        )
        SELECT
            month, date_trunc('hour', time, 'UTC') AS hour, org_id, workspace_id, user_id,
            token_id, vendor, model_requested, model_served,
            sum(sign), sum(sign * counted::integer),
            sum(sign * (usage_source = 'partial')::integer),
            sum(sign * (
                usage_source = 'none' AND counted AND status <> 'vendor_error'
            )::integer),
            sum(sign * input_tokens), sum(sign * cache_read_tokens),
            sum(sign * cache_write_tokens), sum(sign * cache_write_5m_tokens),
            sum(sign * cache_write_1h_tokens), sum(sign * output_tokens),
            sum(sign * reasoning_tokens), sum(sign * audio_input_tokens),
            sum(sign * audio_output_tokens), sum(sign * image_input_tokens),
            sum(sign * seconds), sum(sign * searches), sum(sign * pages)
        FROM change
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
        ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9
        ON CONFLICT (
            month, hour, org_id, workspace_id, user_id, token_id, vendor, model_requested,
            model_served
        ) DO UPDATE SET
            calls = h.calls + EXCLUDED.calls,
            counted = h.counted + EXCLUDED.counted,
            usage_partial = h.usage_partial + EXCLUDED.usage_partial,
            usage_unknown = h.usage_unknown + EXCLUDED.usage_unknown,
            input_tokens = coalesce(
                h.input_tokens + EXCLUDED.input_tokens, h.input_tokens, EXCLUDED.input_tokens),
            cache_read_tokens = coalesce(
                h.cache_read_tokens + EXCLUDED.cache_read_tokens,
                h.cache_read_tokens, EXCLUDED.cache_read_tokens),
            cache_write_tokens = coalesce(
                h.cache_write_tokens + EXCLUDED.cache_write_tokens,
                h.cache_write_tokens, EXCLUDED.cache_write_tokens),
            cache_write_5m_tokens = coalesce(
                h.cache_write_5m_tokens + EXCLUDED.cache_write_5m_tokens,
                h.cache_write_5m_tokens, EXCLUDED.cache_write_5m_tokens),
            cache_write_1h_tokens = coalesce(
                h.cache_write_1h_tokens + EXCLUDED.cache_write_1h_tokens,
                h.cache_write_1h_tokens, EXCLUDED.cache_write_1h_tokens),
            output_tokens = coalesce(
                h.output_tokens + EXCLUDED.output_tokens, h.output_tokens, EXCLUDED.output_tokens),
            reasoning_tokens = coalesce(
                h.reasoning_tokens + EXCLUDED.reasoning_tokens,
                h.reasoning_tokens, EXCLUDED.reasoning_tokens),
            audio_input_tokens = coalesce(
                h.audio_input_tokens + EXCLUDED.audio_input_tokens,
                h.audio_input_tokens, EXCLUDED.audio_input_tokens),
            audio_output_tokens = coalesce(
                h.audio_output_tokens + EXCLUDED.audio_output_tokens,
                h.audio_output_tokens, EXCLUDED.audio_output_tokens),
            image_input_tokens = coalesce(
                h.image_input_tokens + EXCLUDED.image_input_tokens,
                h.image_input_tokens, EXCLUDED.image_input_tokens),
            seconds = coalesce(h.seconds + EXCLUDED.seconds, h.seconds, EXCLUDED.seconds),
            searches = coalesce(h.searches + EXCLUDED.searches, h.searches, EXCLUDED.searches),
            pages = coalesce(h.pages + EXCLUDED.pages, h.pages, EXCLUDED.pages)
    )
    SELECT count(*) INTO inserted FROM appended;
    last_ordinal := head + inserted;
    IF inserted > 0 THEN
        UPDATE ledger_head SET last = last_ordinal;
    END IF;
END
$$;

-- Put a row aside that `ledger_append` can't take.
CREATE FUNCTION ledger_reject(bad_row text, sqlstate text, message text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    INSERT INTO ledger_rejected (id, content, sqlstate, message)
    VALUES (md5(bad_row)::uuid, bad_row, sqlstate, message)
    ON CONFLICT DO NOTHING;
$$;

-- The least version-7 id that can have been made at a time.
CREATE FUNCTION uuid_v7_floor(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))
        ::uuid;
$$;

-- Give the last month, this one and the next two a partition each; return how many were missing.
CREATE FUNCTION ensure_partitions() RETURNS integer
LANGUAGE plpgsql SET search_path = public, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    this_month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    starts timestamp;
    lower uuid;
    upper uuid;
    name text;
    made integer := 0;
BEGIN
    FOR ahead IN -1..2 LOOP
        starts := this_month + make_interval(months => ahead);
        lower := uuid_v7_floor(starts AT TIME ZONE 'UTC');
        upper := uuid_v7_floor((starts + interval '1 month') AT TIME ZONE 'UTC');
        name := 'usage_events_' || to_char(starts, 'YYYY_MM');
        CONTINUE WHEN to_regclass(name) IS NOT NULL;
        -- Nobody appends meanwhile: the locks below would be taken in another order than theirs.
        PERFORM 1 FROM ledger_head FOR UPDATE;
        EXECUTE format('CREATE TABLE %I (LIKE usage_events INCLUDING ALL)', name);
        EXECUTE format(
            'WITH moved AS (
                DELETE FROM usage_events_default WHERE id >= %L AND id < %L RETURNING *
            )
            INSERT INTO %I SELECT * FROM moved',
            lower, upper, name
        );
        EXECUTE format(
            'ALTER TABLE usage_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            name, lower, upper
        );
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;
SELECT ensure_partitions();

-- What the database needs done now and then, by any gateway: partitions ahead, and an end to what
-- is only news. Returns what an operator should know, nulls where another session is at it.
CREATE FUNCTION housekeep(
    OUT partitions_made integer,
    OUT strays bigint,  -- events in no month's partition; counted up to 1,000
    OUT rejected bigint  -- rows put aside; counted up to 1,000
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(x'6b6169787502'::bigint) THEN
        RETURN;
    END IF;
    -- The newest change stays, however old: workers know by it that this is still the same log.
    DELETE FROM change_log WHERE id IN (
        SELECT id FROM change_log
        WHERE at < now() - interval '7 days' AND ordinal < (SELECT last FROM change_head)
        ORDER BY at LIMIT 10000
    );
    DELETE FROM confirmations WHERE (ordinal, worker_id) IN (
        SELECT ordinal, worker_id FROM confirmations
        WHERE at < now() - interval '1 hour' ORDER BY at LIMIT 10000
    );
    -- One that left calls without rows stays until its journal is recovered: it holds the seal.
    DELETE FROM workers WHERE id IN (
        SELECT id FROM workers
        WHERE ended_at < now() - interval '1 day' AND unshipped_since IS NULL LIMIT 10000
    );
    PERFORM prune_blocks();
    SELECT count(*) INTO strays FROM (SELECT FROM usage_events_default LIMIT 1000) AS s;
    SELECT count(*) INTO rejected FROM (SELECT FROM ledger_rejected LIMIT 1000) AS r;
    partitions_made := ensure_partitions();
END
$$;

REVOKE ALL ON FUNCTION ledger_append(json), ledger_reject(text, text, text), ensure_partitions(),
    housekeep() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_append(json), ledger_reject(text, text, text), housekeep()
    TO kaixu_gateway;
