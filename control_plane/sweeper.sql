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

-- name: audit_log
-- The beginnings of chains, where they are not kept for ever.
SELECT prune_audit_log()
