-- What gateways refused: a sample for whoever asks "why", kept for 30 days. Metrics count them all.

CREATE TABLE refusals (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    worker_id uuid NOT NULL,
    reason text NOT NULL,
    org_id uuid,  -- null: nobody knows who called
    token_id uuid,
    limit_kind text,  -- of a spent limit: token, user, workspace, org
    unsampled bigint NOT NULL DEFAULT 0  -- refusals of this worker before this one that are not here
);
CREATE INDEX refusals_by_time ON refusals (at);
CREATE INDEX refusals_by_token ON refusals (token_id, at) WHERE token_id IS NOT NULL;

-- Some at a time: a sweep must not hold up those who write.
CREATE FUNCTION prune_refusals() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH old AS (
        SELECT id FROM refusals WHERE at < clock_timestamp() - interval '30 days'
        ORDER BY at LIMIT 10000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM refusals USING old WHERE refusals.id = old.id RETURNING refusals.id
    )
    SELECT count(*) FROM gone;
$$;
REVOKE ALL ON FUNCTION prune_refusals() FROM PUBLIC;

GRANT INSERT ON refusals TO kaixu_gateway;
GRANT EXECUTE ON FUNCTION prune_refusals() TO kaixu_gateway;
