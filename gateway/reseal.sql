-- Vendor keys, as they are sealed anew.

-- name: lock
-- Wait for whoever is configuring: what they seal to the key before must be there to be found.
LOCK TABLE vendors IN SHARE ROW EXCLUSIVE MODE

-- name: register_public_key
-- Let vendor keys be sealed to a gateway key from now on, one that comes back included.
INSERT INTO vault_keys (public_key) VALUES ($1)
ON CONFLICT (public_key) DO UPDATE SET created_at = clock_timestamp()

-- name: sealed_vendors
-- Every vendor that has a sealed key, removed ones included: their keys are still in dumps.
SELECT id, org_id, name, kind, base_url, is_private, is_simulator, sealed_key, key_version
FROM vendors
WHERE sealed_key <> ''
ORDER BY id

-- name: replace_sealed_key
-- The same key, sealed to another gateway key; unless it was changed meanwhile.
UPDATE vendors SET sealed_key = $3 WHERE id = $1 AND sealed_key = $2
RETURNING id
