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
CREATE UNLOGGED TABLE permits_held (
    kind text NOT NULL,
    subject text NOT NULL,  -- an id, or the network of an address
    worker_id uuid NOT NULL,
    held integer NOT NULL CHECK (held > 0),
    PRIMARY KEY (kind, subject, worker_id)
);

-- Slots are 1/240 of a window, numbered from 1970 on.
CREATE UNLOGGED TABLE permits_used (
    kind text NOT NULL,
    subject text NOT NULL,
    slot bigint NOT NULL,
    used integer NOT NULL CHECK (used > 0),
    ends_at timestamptz NOT NULL,  -- from then on it is in no window
    PRIMARY KEY (kind, subject, slot)
);
CREATE INDEX permits_used_by_end ON permits_used (ends_at);

-- Take in what a worker used and holds of each subject, and grant it more of what it wants: at most
-- a quarter of what is free, so that others find some too. A null window: open calls. One row each:
--   granted       so many more are held now
--   outstanding   nothing is free, but other workers hold some; they are called back if may_recall
--   wait_seconds  until a used one leaves the window; null: none is in it
-- What a worker held that is gone counts as used when somebody asks next.
CREATE FUNCTION exchange_permits(
    worker_id uuid, kinds text[], subjects text[], limits integer[], windows float8[],
    helds integer[], useds integer[], wants integer[], may_recall boolean
) RETURNS TABLE (
    kind text, subject text, granted integer, outstanding boolean, wait_seconds float8
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    slots_max CONSTANT bigint := 240;
    asked record;
    slot_seconds float8;
    this_slot bigint;
    used_now integer;
    used_in_window bigint;
    held_by_others bigint;
    free bigint;
BEGIN
    FOR asked IN
        SELECT a.*, hashtextextended('permits:' || a.kind || ':' || a.subject, 0) AS lock
        FROM unnest(kinds, subjects, limits, windows, helds, useds, wants)
            AS a (kind, subject, calls, seconds, held, used, want)
        ORDER BY lock  -- in one order, so that nobody waits in a circle
    LOOP
        PERFORM pg_advisory_xact_lock(asked.lock);
        kind := asked.kind;
        subject := asked.subject;
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
                        AND w.heartbeat_at + w.lease > clock_timestamp()
                )
            RETURNING h.held
        )
        SELECT used_now + coalesce(sum(g.held), 0) INTO used_now FROM gone AS g;

        IF asked.seconds IS NOT NULL THEN
            slot_seconds := asked.seconds / slots_max;
            this_slot := floor(extract(epoch FROM clock_timestamp())::float8 / slot_seconds);
            DELETE FROM permits_used AS u
            WHERE u.kind = asked.kind AND u.subject = asked.subject
                AND u.slot < this_slot - slots_max;
            IF used_now > 0 THEN
                INSERT INTO permits_used (kind, subject, slot, used, ends_at)
                VALUES (
                    asked.kind, asked.subject, this_slot, used_now,
                    to_timestamp((this_slot + slots_max + 1) * slot_seconds)
                )
                ON CONFLICT ON CONSTRAINT permits_used_pkey
                DO UPDATE SET used = permits_used.used + excluded.used;
            END IF;
            SELECT
                coalesce(sum(u.used), 0),
                (min(u.slot) + slots_max + 1) * slot_seconds
                    - extract(epoch FROM clock_timestamp())::float8
            INTO used_in_window, wait_seconds
            FROM permits_used AS u
            WHERE u.kind = asked.kind AND u.subject = asked.subject;
        END IF;

        SELECT coalesce(sum(h.held), 0) INTO held_by_others FROM permits_held AS h
        WHERE h.kind = asked.kind AND h.subject = asked.subject
            AND h.worker_id <> exchange_permits.worker_id;
        free := asked.calls - used_in_window - held_by_others - asked.held;
        granted := CASE
            WHEN free > 0 THEN least(asked.want, greatest(1, free / 4)) ELSE 0
        END;
        IF asked.held + granted > 0 THEN
            INSERT INTO permits_held (kind, subject, worker_id, held)
            VALUES (
                asked.kind, asked.subject, exchange_permits.worker_id, asked.held + granted
            )
            ON CONFLICT ON CONSTRAINT permits_held_pkey DO UPDATE SET held = excluded.held;
        ELSE
            DELETE FROM permits_held AS h
            WHERE h.kind = asked.kind AND h.subject = asked.subject
                AND h.worker_id = exchange_permits.worker_id;
        END IF;
        outstanding := granted = 0 AND asked.want > 0 AND held_by_others > 0;
        IF outstanding AND may_recall THEN
            PERFORM pg_notify('kaixu_recall', asked.kind || ':' || asked.subject);
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Delete some of what is in no window any more, and what workers held that are long gone.
CREATE FUNCTION prune_permits(rows_max integer DEFAULT 10000) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    DELETE FROM permits_used WHERE (kind, subject, slot) IN (
        SELECT kind, subject, slot FROM permits_used
        WHERE ends_at < clock_timestamp() ORDER BY ends_at LIMIT rows_max
    );
    DELETE FROM permits_held AS h WHERE NOT EXISTS (
        SELECT FROM workers AS w
        WHERE w.id = h.worker_id
            AND (w.ended_at IS NULL OR w.ended_at > clock_timestamp() - interval '1 day')
            AND w.heartbeat_at > clock_timestamp() - interval '1 day'
    );
$$;

REVOKE ALL ON FUNCTION
    exchange_permits(
        uuid, text[], text[], integer[], float8[], integer[], integer[], integer[], boolean
    ),
    prune_permits(integer)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    exchange_permits(
        uuid, text[], text[], integer[], float8[], integer[], integer[], integer[], boolean
    ),
    prune_permits(integer)
TO kaixu_gateway;
GRANT SELECT ON rate_limits, concurrency_limits TO kaixu_gateway;
