-- What a worker asks and tells on its feed's own connection.

-- name: heartbeat
-- Tell that this worker lives and how far it is; learn how far the database is, and whether its
-- ledger has the row ($8, $9).
INSERT INTO workers AS worker (
    id, machine, pid, heartbeat_at, lease, offline_stream_grace, applied, unshipped_since
)
SELECT
    $1::uuid, $2, $3, clock_timestamp(), make_interval(secs => $4), make_interval(secs => $5),
    $6::bigint, to_timestamp($7::float8)
FROM change_head
ON CONFLICT (id) DO UPDATE SET
    heartbeat_at = excluded.heartbeat_at,
    applied = excluded.applied,
    unshipped_since = excluded.unshipped_since
RETURNING
    extract(epoch FROM worker.heartbeat_at)::float8 AS database_time,
    (SELECT last FROM change_head) AS head,
    (SELECT last_id FROM change_head) AS head_id,
    worker.ended_at IS NOT NULL AS is_ended,
    ledger_follows($8::bigint, $9::uuid) AS ledger_follows

-- name: read_changes
-- The head, whether the change ($1, $2) is a part of the history that led there, and what followed.
SELECT
    head.last AS head,
    head.last_id AS head_id,
    (head.last = $1::bigint AND head.last_id = $2::uuid) OR EXISTS (
        SELECT FROM change_log AS next
        WHERE next.ordinal = $1::bigint + 1 AND next.previous_id = $2::uuid
    ) AS follows,
    change.ordinal,
    change.id,
    change.kind,
    change.subject_id,
    change.effect,
    extract(epoch FROM change.at)::float8 AS at
FROM change_head AS head
LEFT JOIN LATERAL (
    SELECT * FROM change_log WHERE ordinal > $1::bigint ORDER BY ordinal LIMIT $3
) AS change ON true
ORDER BY change.ordinal

-- name: confirm
-- These changes hold in this worker. A confirmation lost with the server is one that is pending.
WITH at_once AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
INSERT INTO confirmations (ordinal, worker_id, streams_cut)
SELECT cut.ordinal, $1::uuid, cut.streams
FROM at_once, unnest($2::bigint[], $3::integer[]) AS cut (ordinal, streams)
ON CONFLICT DO NOTHING

-- name: end_worker
-- Nobody waits for this worker any more; it admits no calls and streams nothing.
UPDATE workers
SET ended_at = coalesce(ended_at, clock_timestamp()), unshipped_since = to_timestamp($2::float8)
WHERE id = $1::uuid
