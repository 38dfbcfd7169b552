-- What the change log and the workers say of a change.

-- name: last_change
-- The last change that a transaction logged: who holds it holds the others.
SELECT ordinal, at FROM change_log WHERE xact = $1::text::xid8 ORDER BY ordinal DESC LIMIT 1

-- name: workers
-- Every worker that may still admit calls or run streams, and whether a change holds in it.
SELECT
    w.id::text AS worker_id, w.machine, c.at AS confirmed_at, c.streams_cut,
    w.applied >= $1 AS has_applied,
    w.started_at > $2 AS began_later,
    w.heartbeat_at,
    w.heartbeat_at + w.lease > clock_timestamp() AS is_live,
    w.heartbeat_at + w.lease AS admission_stops_at,
    w.heartbeat_at + w.lease + w.offline_stream_grace AS streams_stop_at
FROM workers AS w
LEFT JOIN confirmations AS c ON c.worker_id = w.id AND c.ordinal = $1
WHERE w.ended_at IS NULL
    AND w.heartbeat_at + w.lease + w.offline_stream_grace > clock_timestamp()
ORDER BY w.machine, w.started_at, w.id

-- name: started_within_a_lease
-- Whether the server began so recently that workers may be out there which it has not heard of.
SELECT pg_postmaster_start_time() + greatest(
    $1, (SELECT max(lease) FROM workers WHERE ended_at IS NULL)
) > clock_timestamp()

-- name: earlier_end
-- The last change that ended a subject; no row where the log was pruned since.
SELECT ordinal, at FROM change_log
WHERE kind = $1 AND subject_id = $2 AND effect = 'dead' AND ordinal IS NOT NULL
ORDER BY ordinal DESC LIMIT 1

-- name: current_transaction
-- The transaction at hand, as a receipt asks for it.
SELECT pg_current_xact_id()::text
