-- name: list
-- Every alias, by name.
SELECT name, vendor_name AS vendor, model, created_at FROM aliases ORDER BY name COLLATE "C"

-- name: set
-- Let a name stand for a vendor's model.
INSERT INTO aliases (name, vendor_name, model) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET vendor_name = EXCLUDED.vendor_name, model = EXCLUDED.model

-- name: remove
-- Forget an alias.
DELETE FROM aliases WHERE name = $1 RETURNING name
