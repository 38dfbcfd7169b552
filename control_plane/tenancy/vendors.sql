-- name: lock
-- One configurer at a time: what is checked against the others must still hold at the commit.
LOCK TABLE vendors, aliases IN SHARE ROW EXCLUSIVE MODE

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
-- The operator's vendors, oldest first, without their sealed keys.
SELECT
    id::text, name, kind, base_url, is_private, is_default, models, usage_unasked, is_simulator,
    key_version, created_at
FROM vendors
WHERE removed_at IS NULL AND org_id IS NULL
ORDER BY created_at, name

-- name: insert
-- Add a vendor.
INSERT INTO vendors (
    id, name, kind, base_url, is_private, is_default, models, usage_unasked, is_simulator,
    sealed_key, key_version
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)

-- name: replace
-- Give a vendor's name, and its id, to another one.
UPDATE vendors
SET kind = $2, base_url = $3, is_private = $4, is_default = $5, models = $6, usage_unasked = $7,
    is_simulator = $8, sealed_key = $9, key_version = $10
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
-- Whether the operator has a vendor of this name.
SELECT name FROM vendors WHERE name = $1 AND removed_at IS NULL AND org_id IS NULL
