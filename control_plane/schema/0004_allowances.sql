-- What is left of the monthly limits, and the blocks of it that workers hold.
--
-- A worker takes units from blocks in its memory. A block's row is inserted when it is granted and
-- settled once when it comes back, each in the transaction that changes its allowance; an id that
-- is settled before its grant arrives becomes a tombstone. So neither a lost reply, nor a late
-- grant, nor a recovery that runs twice can move a unit twice.
--
-- Locks: every function takes the rows of its blocks first, by id, and then allowances, by their
-- key. Nobody who holds an allowance waits for a block, so nobody waits in a circle.

-- One subject's month: how many units are out in blocks or used. It can exceed a lowered limit.
CREATE TABLE allowances (
    kind text NOT NULL CHECK (kind IN ('token', 'user', 'workspace', 'org')),
    subject_id uuid NOT NULL,
    unit text NOT NULL CHECK (unit = 'calls'),
    month date NOT NULL CHECK (extract(day FROM month) = 1),
    taken bigint NOT NULL DEFAULT 0 CHECK (taken >= 0),  -- granted, less what was handed back
    PRIMARY KEY (kind, subject_id, unit, month)
) WITH (fillfactor = 50);  -- updated in place, often

CREATE TABLE blocks (
    id uuid PRIMARY KEY,  -- made by the worker, dated (UUIDv7)
    kind text,
    subject_id uuid,
    unit text,
    month date,
    worker_id uuid,
    amount bigint NOT NULL CHECK (amount >= 0),
    used bigint CHECK (used BETWEEN 0 AND amount),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at timestamptz,
    CHECK ((used IS NULL) = (settled_at IS NULL)),
    -- A tombstone belongs to nobody and holds nothing.
    CHECK (
        num_nulls(kind, subject_id, unit, month, worker_id) = 0
        OR num_nonnulls(kind, subject_id, unit, month, worker_id) = 0
            AND amount = 0 AND settled_at IS NOT NULL
    )
);
CREATE INDEX blocks_out ON blocks (kind, subject_id, unit, month) WHERE settled_at IS NULL;

-- The UTC month that the database is in; the only place that says so.
CREATE FUNCTION allowance_month() RETURNS date
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC')::date;
$$;

-- Grant a block of the current month for each id: at most what it wants, and an eighth of what is
-- left once that is less, so that the last units spread over those who need them. One row an id:
--   granted      units in the block; 0: no block is kept
--   "limit"      null: the subject has none, and nothing is kept
--   remaining    what is left for the next grant
--   outstanding  nothing is left, but other workers hold blocks; they are called back if may_recall
-- Asking again for a block that is out gives what it was granted; a settled id is granted nothing.
CREATE FUNCTION grant_blocks(
    worker_id uuid, block_ids uuid[], kinds text[], subject_ids uuid[], wants bigint[],
    may_recall boolean DEFAULT true
) RETURNS TABLE (
    block_id uuid, kind text, subject_id uuid, month date, granted bigint, "limit" bigint,
    remaining bigint, outstanding boolean, reset_at timestamptz
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    this_month constant date NOT NULL := allowance_month();
    fresh uuid[];
    asked record;
    was_taken bigint;
BEGIN
    WITH added AS (
        INSERT INTO blocks (id, kind, subject_id, unit, month, worker_id, amount)
        SELECT a.id, a.kind, a.subject_id, 'calls', this_month, grant_blocks.worker_id, 0
        FROM unnest(block_ids, kinds, subject_ids) AS a (id, kind, subject_id)
        ORDER BY a.id
        ON CONFLICT DO NOTHING
        RETURNING blocks.id
    )
    SELECT coalesce(array_agg(added.id), '{}') INTO fresh FROM added;

    FOR asked IN
        SELECT a.id, a.kind, a.subject_id, greatest(coalesce(a.want, 1), 1) AS want
        FROM unnest(block_ids, kinds, subject_ids, wants) AS a (id, kind, subject_id, want)
        ORDER BY a.kind, a.subject_id, a.id
    LOOP
        block_id := asked.id;
        kind := asked.kind;
        subject_id := asked.subject_id;
        month := this_month;
        granted := 0;
        remaining := NULL;
        outstanding := false;

        SELECT l.calls_a_month INTO "limit" FROM call_limits AS l
        WHERE l.kind = asked.kind AND l.subject_id = asked.subject_id;
        IF "limit" IS NOT NULL THEN
            INSERT INTO allowances (kind, subject_id, unit, month)
            VALUES (asked.kind, asked.subject_id, 'calls', this_month)
            ON CONFLICT DO NOTHING;
            SELECT a.taken INTO STRICT was_taken FROM allowances AS a
            WHERE a.kind = asked.kind AND a.subject_id = asked.subject_id
                AND a.unit = 'calls' AND a.month = this_month
            FOR UPDATE;
            -- Read under the lock: a limit that was lowered while we waited holds.
            SELECT l.calls_a_month INTO "limit" FROM call_limits AS l
            WHERE l.kind = asked.kind AND l.subject_id = asked.subject_id;
            remaining := greatest("limit" - was_taken, 0);
        END IF;

        IF asked.id <> ALL (fresh) THEN
            -- The reply to an earlier grant was lost, or the id is settled.
            SELECT b.amount, b.month INTO granted, month FROM blocks AS b
            WHERE b.id = asked.id AND b.settled_at IS NULL AND b.kind = asked.kind
                AND b.subject_id = asked.subject_id AND b.worker_id = grant_blocks.worker_id;
            granted := coalesce(granted, 0);
            month := coalesce(month, this_month);
        ELSIF remaining > 0 THEN
            granted := least(asked.want, greatest(1, remaining / 8));
            remaining := remaining - granted;
            UPDATE blocks AS b SET amount = granted WHERE b.id = asked.id;
            UPDATE allowances AS a SET taken = a.taken + granted
            WHERE a.kind = asked.kind AND a.subject_id = asked.subject_id
                AND a.unit = 'calls' AND a.month = this_month;
        ELSE
            DELETE FROM blocks AS b WHERE b.id = asked.id;
        END IF;

        IF granted = 0 AND "limit" IS NOT NULL THEN
            outstanding := EXISTS (
                SELECT FROM blocks AS b
                WHERE b.kind = asked.kind AND b.subject_id = asked.subject_id
                    AND b.unit = 'calls' AND b.month = this_month AND b.settled_at IS NULL
                    AND b.worker_id <> grant_blocks.worker_id
            );
            IF outstanding AND may_recall THEN
                PERFORM pg_notify('kaixu_recall', asked.kind || ':' || asked.subject_id);
            END IF;
        END IF;
        reset_at := (month + interval '1 month') AT TIME ZONE 'UTC';
        RETURN NEXT;
    END LOOP;
END
$$;

-- Settle each block once: what was not used goes back to the allowance of the block's own month.
-- A null in used burns the block whole. An id that was never seen becomes a tombstone.
CREATE FUNCTION settle_blocks(block_ids uuid[], used bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO blocks (id, amount, used, settled_at)
    SELECT s.id, 0, 0, clock_timestamp() FROM unnest(block_ids) AS s (id) ORDER BY s.id
    ON CONFLICT DO NOTHING;

    PERFORM FROM blocks AS b
    WHERE b.id = ANY (block_ids) AND b.settled_at IS NULL ORDER BY b.id FOR UPDATE;

    PERFORM FROM allowances AS a
    WHERE (a.kind, a.subject_id, a.unit, a.month) IN (
        SELECT b.kind, b.subject_id, b.unit, b.month FROM blocks AS b
        WHERE b.id = ANY (block_ids) AND b.settled_at IS NULL
    )
    ORDER BY a.kind, a.subject_id, a.unit, a.month FOR UPDATE;

    WITH settled AS (
        UPDATE blocks AS b
        SET used = greatest(0, least(b.amount, coalesce(s.used, b.amount))),
            settled_at = clock_timestamp()
        FROM unnest(block_ids, settle_blocks.used) AS s (id, used)
        WHERE b.id = s.id AND b.settled_at IS NULL
        RETURNING b.kind, b.subject_id, b.unit, b.month, b.amount - b.used AS unused
    ),
    unused AS (
        SELECT kind, subject_id, unit, month, sum(unused)::bigint AS units FROM settled
        GROUP BY kind, subject_id, unit, month
        HAVING sum(unused) > 0
    )
    UPDATE allowances AS a SET taken = a.taken - u.units FROM unused AS u
    WHERE a.kind = u.kind AND a.subject_id = u.subject_id AND a.unit = u.unit
        AND a.month = u.month;
END
$$;

-- Delete some blocks that were settled over two months ago, and say how many: no grant is that
-- late, and no journal is kept that long. Ids are dated, so this reads the old end of the key.
CREATE FUNCTION prune_blocks(rows_max integer DEFAULT 10000) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH old AS (
        SELECT id FROM blocks
        WHERE id < (
                lpad(to_hex(floor(
                    extract(epoch FROM clock_timestamp() - interval '62 days') * 1000
                )::bigint), 12, '0') || repeat('0', 20)
            )::uuid
            AND settled_at < clock_timestamp() - interval '62 days'
        ORDER BY id LIMIT rows_max
    ),
    pruned AS (
        DELETE FROM blocks AS b USING old WHERE b.id = old.id RETURNING b.id
    )
    SELECT count(*) FROM pruned;
$$;

REVOKE ALL ON FUNCTION
    allowance_month(),
    grant_blocks(uuid, uuid[], text[], uuid[], bigint[], boolean),
    settle_blocks(uuid[], bigint[]),
    prune_blocks(integer)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    grant_blocks(uuid, uuid[], text[], uuid[], bigint[], boolean),
    settle_blocks(uuid[], bigint[])
TO kaixu_gateway;
