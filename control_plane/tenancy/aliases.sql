-- name: list
-- The aliases of an org, or (null) the operator's, by name.
SELECT name, vendor_name AS vendor, model, created_at FROM all_aliases
WHERE org_id IS NOT DISTINCT FROM $1::uuid
ORDER BY name COLLATE "C"

-- name: find
-- One of them.
SELECT name, vendor_name AS vendor, model, created_at FROM all_aliases
WHERE org_id IS NOT DISTINCT FROM $1::uuid AND name = $2

-- name: count
-- How many aliases an org has.
SELECT count(*) FROM org_aliases WHERE org_id = $1::uuid

-- name: set
-- Let a name stand for a vendor's model, for everyone.
INSERT INTO aliases (name, vendor_name, model) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET vendor_name = EXCLUDED.vendor_name, model = EXCLUDED.model

-- name: set_in_org
-- Let a name stand for a vendor's model, for one org.
INSERT INTO org_aliases (org_id, name, vendor_name, model) VALUES ($4::uuid, $1, $2, $3)
ON CONFLICT (org_id, name)
DO UPDATE SET vendor_name = EXCLUDED.vendor_name, model = EXCLUDED.model

-- name: remove
-- Forget an alias of everyone's.
DELETE FROM aliases WHERE name = $1 RETURNING pg_current_xact_id()::text

-- name: remove_in_org
-- Forget an alias of one org.
DELETE FROM org_aliases WHERE name = $1 AND org_id = $2::uuid RETURNING pg_current_xact_id()::text
