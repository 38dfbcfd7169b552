-- Who is told of alerts, and what there was to tell.

-- name: hold
-- One at a time makes or removes an org's subscriptions, until its transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('alert subscriptions ' || $1::text, 0))

-- name: count
-- How many subscriptions an org has.
SELECT count(*) FROM alert_subscriptions WHERE org_id = $1

-- name: has_address
-- Whether a member can be written to.
SELECT a.email_verified_at IS NOT NULL AS is_verified
FROM users AS u LEFT JOIN accounts AS a ON a.id = u.account_id
WHERE u.org_id = $1 AND u.id = $2 AND u.removed_at IS NULL AND u.disabled_at IS NULL

-- name: create
-- Subscribe.
INSERT INTO alert_subscriptions (id, org_id, channel, user_id, url, secret_sealed, kinds)
VALUES ($1, $2, $3, $4, $5, $6, $7)
RETURNING id::text, channel, user_id::text, url, kinds, created_at

-- name: list
-- An org's subscriptions; there are few.
SELECT id::text, channel, user_id::text, url, kinds, created_at
FROM alert_subscriptions WHERE org_id = $1 ORDER BY created_at, id

-- name: remove
-- Tell nobody there any more.
DELETE FROM alert_subscriptions WHERE org_id = $1 AND id = $2
RETURNING channel, user_id::text, url

-- name: alerts
-- What there was to tell, newest first, and how often it was sent.
SELECT
    a.id::text, a.kind, a.level, a.subject_kind, a.subject, a.period, a.detail::text AS detail, a.at,
    count(d.alert_id) FILTER (WHERE d.state = 'sent') AS sent,
    count(d.alert_id) FILTER (WHERE d.state = 'waiting') AS waiting,
    count(d.alert_id) FILTER (WHERE d.state = 'failed') AS failed
FROM alerts AS a LEFT JOIN alert_deliveries AS d ON d.alert_id = a.id
WHERE a.org_id = $1
    AND ($2::text IS NULL OR a.kind = $2)
    AND ($3::timestamptz IS NULL OR (a.at, a.id) < ($3, $4::uuid))
GROUP BY a.id ORDER BY a.at DESC, a.id DESC LIMIT $5
