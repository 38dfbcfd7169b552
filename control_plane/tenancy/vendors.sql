-- name: lock
-- One configurer at a time: what is checked against the others must still hold at the commit.
SELECT lock_vendors()

-- name: newest_public_key
-- The key to seal to.
SELECT public_key FROM vault_keys ORDER BY created_at DESC, public_key LIMIT 1

-- name: add_public_key
-- Register a gateway key; the newest is sealed to, and one that comes back is the newest again.
INSERT INTO vault_keys (public_key) VALUES ($1)
ON CONFLICT (public_key) DO UPDATE SET created_at = clock_timestamp()

-- name: public_keys
-- Every key that vendor keys may be sealed to.
SELECT public_key FROM vault_keys

-- name: list
-- The vendors of an org, or (null) the operator's, oldest first, without their sealed keys.
SELECT
    id::text, name, kind, base_url, is_private, is_default, models, usage_unasked, is_simulator,
    key_version, created_at, disabled_at IS NOT NULL AS is_disabled
FROM vendors
WHERE removed_at IS NULL AND org_id IS NOT DISTINCT FROM $1::uuid
ORDER BY created_at, name

-- name: insert
-- Add a vendor.
INSERT INTO vendors (
    id, org_id, name, kind, base_url, is_private, is_default, models, usage_unasked, is_simulator,
    disabled_at, sealed_key, key_version
)
VALUES (
    $1, $2::uuid, $3, $4, $5, $6, $7, $8, $9, $10,
    CASE WHEN $11::boolean THEN clock_timestamp() END, $12, $13
)

-- name: replace
-- Give a vendor's name, and its id, to another one.
UPDATE vendors
SET kind = $2, base_url = $3, is_private = $4, is_default = $5, models = $6, usage_unasked = $7,
    is_simulator = $8, disabled_at = CASE WHEN $9::boolean THEN clock_timestamp() END,
    sealed_key = $10, key_version = $11
WHERE id = $1

-- name: change
-- Change what a vendor's key is not tied to.
UPDATE vendors
SET base_url = $2, is_default = $3, models = $4, usage_unasked = $5,
    disabled_at = CASE
        WHEN $6::boolean THEN coalesce(disabled_at, clock_timestamp())
    END
WHERE id = $1

-- name: set_key
-- Give a vendor a new key.
UPDATE vendors SET sealed_key = $2, key_version = $3 WHERE id = $1

-- name: set_default
-- Make a vendor its wire format's default, or end that.
UPDATE vendors SET is_default = $2 WHERE id = $1

-- name: remove
-- Remove a vendor, and forget its key.
UPDATE vendors SET removed_at = clock_timestamp(), is_default = false, sealed_key = ''
WHERE id = $1
RETURNING pg_current_xact_id()::text

-- name: find
-- Whether an org can call a vendor of this name: its own, or the operator's.
SELECT name FROM vendors
WHERE name = $1 AND removed_at IS NULL AND (org_id IS NULL OR org_id = $2::uuid)
LIMIT 1
