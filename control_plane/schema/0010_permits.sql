-- How many calls may begin within a sliding window, how many may be open at once, and the permits
-- for them that workers hold.
--
-- A worker takes permits from its memory and tells of it here afterwards. Of a window, what is held
-- and what was told to be used within it never exceed the limit together; so neither do the calls,
-- wherever they began. Of open calls, what is held never exceeds the limit. A worker says each time
-- how many it holds: a reply that was lost corrects itself.
--
-- The tables are not logged: after a crash of the database a window begins anew.

CREATE TABLE rate_limits (
    kind text NOT NULL CHECK (kind IN ('token', 'org')),
    subject_id uuid NOT NULL,
    org_id uuid NOT NULL REFERENCES orgs (id),
    calls integer NOT NULL CHECK (calls >= 1),
    window_seconds integer NOT NULL CHECK (window_seconds BETWEEN 1 AND 86400),
    PRIMARY KEY (kind, subject_id)
);

CREATE TABLE concurrency_limits (
    kind text NOT NULL CHECK (kind IN ('token', 'org')),
    subject_id uuid NOT NULL,
    org_id uuid NOT NULL REFERENCES orgs (id),
    calls integer NOT NULL CHECK (calls >= 1),
    PRIMARY KEY (kind, subject_id)
);

CREATE TRIGGER limit_inserted_or_deleted AFTER INSERT OR DELETE ON rate_limits
FOR EACH ROW EXECUTE FUNCTION limit_changed();
CREATE TRIGGER limit_updated AFTER UPDATE ON rate_limits
FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION limit_changed();
CREATE TRIGGER limit_inserted_or_deleted AFTER INSERT OR DELETE ON concurrency_limits
FOR EACH ROW EXECUTE FUNCTION limit_changed();
CREATE TRIGGER limit_updated AFTER UPDATE ON concurrency_limits
FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION limit_changed();

-- `kind` is what is limited and of whom: rate-token, rate-org, rate-address, open-token, open-org.
-- What a worker says has a number: a statement that arrives behind a later one changes nothing here.
-- So a row stays for a while after everything was handed back.
CREATE UNLOGGED TABLE permits_held (
    kind text NOT NULL,
    subject text NOT NULL,  -- an id, or the network of an address
    worker_id uuid NOT NULL,
    number bigint NOT NULL,
    held integer NOT NULL CHECK (held >= 0),
    spare integer NOT NULL CHECK (spare BETWEEN 0 AND held),  -- of these, not with an open call
    told_at timestamptz NOT NULL,
    PRIMARY KEY (kind, subject, worker_id)
);

-- What was used, gathered in slots of 1/240 of the window that was in force. It is in a window until
-- the last of it leaves.
CREATE UNLOGGED TABLE permits_used (
    kind text NOT NULL,
    subject text NOT NULL,
    slot_at timestamptz NOT NULL,
    used integer NOT NULL CHECK (used > 0),
    last_at timestamptz NOT NULL,
    keep_until timestamptz NOT NULL,
    PRIMARY KEY (kind, subject, slot_at)
);
CREATE INDEX permits_used_by_end ON permits_used (keep_until);

-- Take in what a worker used and holds of each subject, and grant it more of what it wants: at most
-- a quarter of what is free, so that others find some too. A null window: open calls. One row each:
--   granted       so many more are held now
--   outstanding   nothing is free, but other workers have spare ones; they are called back if
--                 may_recall
--   wait_seconds  until a used one leaves the window; null: none is in it
-- What a worker held that is gone counts as used when somebody asks next. Its open calls may run on
-- for as long as streams may that are cut off from the database; so long it holds its permits.
CREATE FUNCTION exchange_permits(
    worker_id uuid, kinds text[], subjects text[], limits integer[], windows float8[],
    numbers bigint[], helds integer[], spares integer[], useds integer[], wants integer[],
    may_recall boolean
) RETURNS TABLE (
    kind text, subject text, granted integer, outstanding boolean, wait_seconds float8
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    slots CONSTANT float8 := 240;
    asked record;
    now_at timestamptz;
    span interval;
    used_now integer;
    used_in_window bigint;
    held_by_others bigint;
    spare_with_others bigint;
    free bigint;
BEGIN
    FOR asked IN
        SELECT a.*, hashtextextended('permits:' || a.kind || ':' || a.subject, 0) AS lock
        FROM unnest(kinds, subjects, limits, windows, numbers, helds, spares, useds, wants)
            AS a (kind, subject, calls, seconds, number, held, spare, used, want)
        ORDER BY lock  -- in one order, so that nobody waits in a circle
    LOOP
        PERFORM pg_advisory_xact_lock(asked.lock);
        kind := asked.kind;
        subject := asked.subject;
        granted := 0;
        outstanding := false;
        used_now := asked.used;
        used_in_window := 0;
        wait_seconds := NULL;

        -- Statements of their own: they see what was committed while we waited.
        WITH gone AS (
            DELETE FROM permits_held AS h
            WHERE h.kind = asked.kind AND h.subject = asked.subject
                AND h.worker_id <> exchange_permits.worker_id
                AND NOT EXISTS (
                    SELECT FROM workers AS w
                    WHERE w.id = h.worker_id AND w.ended_at IS NULL
                        AND w.heartbeat_at + w.lease + CASE
                            WHEN asked.seconds IS NULL THEN w.offline_stream_grace
                            ELSE interval '0'
                        END > clock_timestamp()
                )
            RETURNING h.held
        )
        SELECT used_now + coalesce(sum(g.held), 0) INTO used_now FROM gone AS g;

        now_at := clock_timestamp();
        IF asked.seconds IS NOT NULL THEN
            span := make_interval(secs => asked.seconds);
            IF used_now > 0 THEN
                INSERT INTO permits_used (kind, subject, slot_at, used, last_at, keep_until)
                VALUES (
                    asked.kind, asked.subject,
                    to_timestamp(
                        floor(extract(epoch FROM now_at)::float8 * slots / asked.seconds)
                            * asked.seconds / slots
                    ),
                    used_now, now_at, now_at + span
                )
                ON CONFLICT ON CONSTRAINT permits_used_pkey DO UPDATE SET
                    used = permits_used.used + excluded.used,
                    last_at = greatest(permits_used.last_at, excluded.last_at),
                    keep_until = greatest(permits_used.keep_until, excluded.keep_until);
            END IF;
            SELECT
                coalesce(sum(u.used), 0),
                extract(epoch FROM least(min(u.last_at) - now_at, interval '0') + span)
            INTO used_in_window, wait_seconds
            FROM permits_used AS u
            WHERE u.kind = asked.kind AND u.subject = asked.subject AND u.last_at > now_at - span;
        END IF;

        SELECT coalesce(sum(h.held), 0), coalesce(sum(h.spare), 0)
        INTO held_by_others, spare_with_others
        FROM permits_held AS h
        WHERE h.kind = asked.kind AND h.subject = asked.subject
            AND h.worker_id <> exchange_permits.worker_id;
        free := asked.calls - used_in_window - held_by_others - asked.held;
        IF free > 0 THEN
            granted := least(asked.want, greatest(1, free / 4));
        END IF;
        INSERT INTO permits_held (kind, subject, worker_id, number, held, spare, told_at)
        VALUES (
            asked.kind, asked.subject, exchange_permits.worker_id, asked.number,
            asked.held + granted, asked.spare + granted, now_at
        )
        ON CONFLICT ON CONSTRAINT permits_held_pkey DO UPDATE SET
            number = excluded.number, held = excluded.held, spare = excluded.spare,
            told_at = excluded.told_at
        WHERE permits_held.number < excluded.number;
        IF NOT FOUND THEN
            granted := 0;  -- it was overtaken, and nobody hears this
        END IF;
        outstanding := granted = 0 AND asked.want > 0 AND spare_with_others > 0;
        IF outstanding AND may_recall THEN
            PERFORM pg_notify('kaixu_recall', asked.kind || ':' || asked.subject);
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Delete some of what is in no window any more, what was handed back long ago, and what workers held
-- that are long gone. It waits for nobody: exchanges lock in another order.
CREATE FUNCTION prune_permits(rows_max integer DEFAULT 10000) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    DELETE FROM permits_used WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM permits_used
        WHERE keep_until < clock_timestamp() ORDER BY keep_until LIMIT rows_max
        FOR UPDATE SKIP LOCKED
    ));
    DELETE FROM permits_held WHERE ctid = ANY (ARRAY(
        SELECT h.ctid FROM permits_held AS h
        WHERE h.held = 0 AND h.told_at < clock_timestamp() - interval '10 minutes'
            OR h.told_at < clock_timestamp() - interval '1 day' AND NOT EXISTS (
                SELECT FROM workers AS w
                WHERE w.id = h.worker_id AND w.ended_at IS NULL
                    AND w.heartbeat_at > clock_timestamp() - interval '1 day'
            )
        LIMIT rows_max
        FOR UPDATE SKIP LOCKED
    ));
$$;

REVOKE ALL ON FUNCTION
    exchange_permits(
        uuid, text[], text[], integer[], float8[], bigint[], integer[], integer[], integer[],
        integer[], boolean
    ),
    prune_permits(integer)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    exchange_permits(
        uuid, text[], text[], integer[], float8[], bigint[], integer[], integer[], integer[],
        integer[], boolean
    ),
    prune_permits(integer)
TO kaixu_gateway;
GRANT SELECT ON rate_limits, concurrency_limits TO kaixu_gateway;
