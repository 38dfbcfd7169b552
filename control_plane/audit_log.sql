-- Who changed what.

-- name: append
-- Append an entry to the chain of its org, or of the installation.
SELECT audit_append(
    $1::uuid, $2, $3::uuid, $4, $5, $6, $7, $8, $9, $10::text::jsonb, $11::text::jsonb
)

-- name: page
-- Entries of a chain, newest first, before an ordinal and with what was asked for in them.
SELECT
    l.id::text, l.ordinal, l.at, l.actor_kind, l.actor_id::text, u.id::text AS user_id,
    u.name AS user_name, l.credential, l.address, l.request_id, l.action, l.target_kind,
    l.target_id, l.before::text, l.after::text, l.erased_at IS NOT NULL AS erased,
    encode(l.hash, 'hex') AS hash
FROM audit_log AS l
LEFT JOIN users AS u ON u.org_id = l.org_id AND u.account_id = l.actor_id
WHERE l.org_id IS NOT DISTINCT FROM $1::uuid
    AND ($2::bigint IS NULL OR l.ordinal < $2)
    AND ($3::text IS NULL OR l.action = $3)
    AND ($4::uuid IS NULL OR l.actor_id = $4)
    AND ($5::timestamptz IS NULL OR l.at >= $5)
    AND ($6::timestamptz IS NULL OR l.at < $6)
ORDER BY l.ordinal DESC
LIMIT $7

-- name: heads
-- Every chain, or one: how far it goes.
SELECT org_id::text, last, last_hash, pruned, pruned_hash, clock_timestamp() AS at FROM audit_heads
WHERE NOT $1::boolean OR org_id IS NOT DISTINCT FROM $2::uuid
ORDER BY org_id NULLS FIRST

-- name: walk
-- A chain, oldest first, as it is verified: texts, and the digests and hashes that they should have.
SELECT
    l.id::text, l.ordinal, l.version, l.hash, l.action, l.after::text, l.erased_at,
    l.address_salt, l.address_digest, l.change_salt, l.change_digest, l.address,
    (l.before IS NULL AND l.after IS NULL) AS is_blank,
    audit_text(l) AS text, audit_address_text(l) AS address_text,
    audit_change_text(l) AS change_text
FROM audit_log AS l
WHERE l.org_id IS NOT DISTINCT FROM $1::uuid
ORDER BY l.ordinal
