-- What the gateway refused, sampled.

-- name: add_refusals
-- Keep refusals: when, which worker, why, whose; and how many were not kept before each.
INSERT INTO refusals (at, worker_id, reason, org_id, token_id, limit_kind, unsampled)
SELECT to_timestamp(kept.at), $1::uuid, kept.reason, kept.org_id, kept.token_id, kept.limit_kind,
    kept.unsampled
FROM unnest($2::float8[], $3::text[], $4::uuid[], $5::uuid[], $6::text[], $7::bigint[])
    AS kept (at, reason, org_id, token_id, limit_kind, unsampled)

-- name: prune_refusals
-- Forget refusals past their retention, some at a time; says how many that were.
SELECT prune_refusals() AS pruned
