-- Alerts: raising and sending them.

-- name: lead
-- Take the watch, if no other node has it; until the session ends or gives it up.
SELECT pg_try_advisory_lock($1)

-- name: give_up
-- Let another node have the watch.
SELECT pg_advisory_unlock($1)

-- name: allow_time
-- Looking through every org takes longer than one request may; until the transaction ends.
SELECT set_config('statement_timeout', $1, true)

-- name: raise
-- Note what there is to be told of.
SELECT raise_alerts()

-- name: take
-- Take what is to be sent now.
SELECT
    alert_id::text, subscription_id::text, org_id::text, tries, kind, subject_kind, subject, period,
    level, detail::text AS detail, at, channel, url, secret_sealed, email
FROM take_alert_deliveries($1, $2)

-- name: end
-- Say what came of a delivery.
SELECT end_alert_delivery($1, $2, $3, $4)
