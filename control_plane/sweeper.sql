-- Forgetting what is old.

-- name: lock
-- Be the one that sweeps, until the transaction ends; false: another node is.
SELECT pg_try_advisory_xact_lock(hashtextextended('kaixu sweeper', 0))

-- name: refusals
-- Samples of what gateways refused.
SELECT prune_refusals()

-- name: throttle
-- Windows that are over.
SELECT prune_throttle()

-- name: idempotency_keys
-- Answers of a day ago.
SELECT prune_idempotency_keys()

-- name: sessions
-- Sessions that ended long ago.
SELECT prune_sessions()

-- name: mailed_links
-- Links that were good long ago.
SELECT prune_mailed_links()

-- name: signups
-- What somebody asked for and never confirmed.
WITH gone AS (
    DELETE FROM signups WHERE id IN (
        SELECT id FROM signups WHERE expires_at < clock_timestamp()
        ORDER BY expires_at LIMIT 10000 FOR UPDATE SKIP LOCKED
    ) RETURNING 1
)
SELECT count(*) FROM gone

-- name: audit_log
-- The beginnings of chains, where they are not kept for ever.
SELECT prune_audit_log()
