-- How often what may be asked of the control plane, exactly, whichever node is asked; and what was
-- answered to requests that may come twice.

-- The moments of the admissions within a window, newest last. No more are kept than the limit has.
CREATE TABLE throttle (
    key text PRIMARY KEY CHECK (length(key) <= 200),
    admitted timestamptz[] NOT NULL,
    until timestamptz NOT NULL  -- afterwards the row says nothing
) WITH (fillfactor = 50);
CREATE INDEX throttle_by_until ON throttle (until);

-- Admit one request under all of these keys, or under none of them (no key comes twice): each admits at most its limit
-- within any window of its length. Return null, or the seconds after which trying again may help.
CREATE FUNCTION throttle_take(keys text[], limits integer[], windows interval[])
RETURNS double precision
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    moment timestamptz;
    wait double precision;
    held bigint;
BEGIN
    LOOP  -- until no row was swept away between the two
        INSERT INTO throttle (key, admitted, until)
        SELECT asked.key, '{}', clock_timestamp() FROM unnest(keys) AS asked (key)
        ORDER BY asked.key COLLATE "C"
        ON CONFLICT (key) DO NOTHING;
        PERFORM FROM throttle WHERE key = ANY (keys) ORDER BY key COLLATE "C" FOR UPDATE;
        GET DIAGNOSTICS held = ROW_COUNT;
        EXIT WHEN held = cardinality(keys);
    END LOOP;
    moment := clock_timestamp();
    WITH asked AS (
        SELECT * FROM unnest(keys, limits, windows) AS a (key, most, span)
    ),
    recent AS (
        SELECT asked.*, array(
            SELECT at FROM unnest(t.admitted) AS at WHERE at > moment - asked.span ORDER BY at
        ) AS admitted
        FROM asked JOIN throttle AS t ON t.key = asked.key
    )
    SELECT max(extract(epoch FROM
        CASE WHEN most <= 0 THEN span ELSE admitted[cardinality(admitted) - most + 1] + span - moment
        END
    )) INTO wait
    FROM recent WHERE cardinality(admitted) >= most;
    IF wait IS NOT NULL THEN
        RETURN greatest(wait, 0.001);
    END IF;
    UPDATE throttle AS t
    SET admitted = array(
            SELECT at FROM unnest(t.admitted) AS at WHERE at > moment - asked.span ORDER BY at
        ) || moment,
        until = greatest(t.until, moment + asked.span)
    FROM unnest(keys, windows) AS asked (key, span)
    WHERE t.key = asked.key;
    RETURN NULL;
END
$$;

CREATE FUNCTION prune_throttle() RETURNS bigint
LANGUAGE sql SET search_path = public, pg_temp AS $$
    WITH old AS (
        SELECT key FROM throttle WHERE until < clock_timestamp()
        ORDER BY until LIMIT 10000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM throttle USING old WHERE throttle.key = old.key RETURNING throttle.key
    )
    SELECT count(*) FROM gone;
$$;
REVOKE ALL ON FUNCTION throttle_take(text[], integer[], interval[]), prune_throttle() FROM PUBLIC;

-- What was answered under an Idempotency-Key, for a day. `status` is null while it is being worked
-- on; `answer` is null where it may be told only once.
CREATE TABLE idempotency_keys (
    account_id uuid NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    route text NOT NULL,
    key text NOT NULL CHECK (length(key) <= 255),
    request_digest bytea NOT NULL CHECK (length(request_digest) = 32),
    status integer,
    answer bytea,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (account_id, route, key)
);
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (created_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON throttle, idempotency_keys TO kaixu_control;
GRANT EXECUTE ON FUNCTION throttle_take(text[], integer[], interval[]), prune_throttle()
TO kaixu_control;
