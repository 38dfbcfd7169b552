-- Workers tell later what they used, and when: a permit that was used and has left the window is good
-- again without a word. Tables and promises are those of 0010_permits.sql; the function there is for
-- gateways of the release before.

-- Take in what a worker used and holds of each subject, and grant it more of what it wants: at most
-- a quarter of what is free, so that others find some too. A null window: open calls. `uses` counts
-- each subject's entries in `use_ages` (seconds before now) and `useds`. One row each:
--   granted       so many more are held now
--   outstanding   nothing is free, but other workers have spare ones; they are called back if
--                 may_recall
--   wait_seconds  until a used one leaves the window; null: none is in it
-- What a worker held that is gone counts as used when somebody asks next. Its open calls may run on
-- for as long as streams may that are cut off from the database; so long it holds its permits.
CREATE FUNCTION exchange_permits(
    worker_id uuid, kinds text[], subjects text[], limits integer[], windows float8[],
    numbers bigint[], helds integer[], spares integer[], wants integer[],
    uses integer[], use_ages float8[], useds integer[], may_recall boolean
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
    lost bigint;
    used_in_window bigint;
    held_by_others bigint;
    spare_with_others bigint;
    free bigint;
BEGIN
    FOR asked IN
        SELECT
            a.*, sum(a.uses) OVER (ORDER BY a.place) AS last_use,
            hashtextextended('permits:' || a.kind || ':' || a.subject, 0) AS lock
        FROM unnest(kinds, subjects, limits, windows, numbers, helds, spares, wants, uses)
            WITH ORDINALITY
            AS a (kind, subject, calls, seconds, number, held, spare, want, uses, place)
        ORDER BY lock  -- in one order, so that nobody waits in a circle
    LOOP
        PERFORM pg_advisory_xact_lock(asked.lock);
        kind := asked.kind;
        subject := asked.subject;
        granted := 0;
        outstanding := false;
        used_in_window := 0;
        wait_seconds := NULL;

        -- A statement of its own: it sees what was committed while we waited.
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
            RETURNING h.worker_id
        )
        SELECT
            coalesce(sum(h.held) FILTER (WHERE g.worker_id IS NULL), 0),
            coalesce(sum(h.spare) FILTER (WHERE g.worker_id IS NULL), 0),
            coalesce(sum(h.held) FILTER (WHERE g.worker_id IS NOT NULL), 0)
        INTO held_by_others, spare_with_others, lost
        FROM permits_held AS h LEFT JOIN gone AS g ON g.worker_id = h.worker_id
        WHERE h.kind = asked.kind AND h.subject = asked.subject
            AND h.worker_id <> exchange_permits.worker_id;

        now_at := clock_timestamp();
        IF asked.seconds IS NOT NULL THEN
            span := make_interval(secs => asked.seconds);
            IF asked.uses > 0 OR lost > 0 THEN
                INSERT INTO permits_used (kind, subject, slot_at, used, last_at, keep_until)
                SELECT
                    asked.kind, asked.subject,
                    to_timestamp(
                        floor(extract(epoch FROM u.at)::float8 * slots / asked.seconds)
                            * asked.seconds / slots
                    ) AS slot_at,
                    sum(u.used), max(u.at), max(u.at) + span
                FROM (
                    SELECT now_at - make_interval(secs => use_ages[i]) AS at, useds[i] AS used
                    FROM generate_series(
                        asked.last_use - asked.uses + 1, asked.last_use
                    ) AS i
                    UNION ALL
                    SELECT now_at, lost::integer
                ) AS u
                WHERE u.used > 0 AND u.at > now_at - span
                GROUP BY 3
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

REVOKE ALL ON FUNCTION exchange_permits(
    uuid, text[], text[], integer[], float8[], bigint[], integer[], integer[], integer[],
    integer[], float8[], integer[], boolean
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION exchange_permits(
    uuid, text[], text[], integer[], float8[], bigint[], integer[], integer[], integer[],
    integer[], float8[], integer[], boolean
) TO kaixu_gateway;
