-- Vendors and aliases, as the gateway loads them.

-- name: load_vendors
-- Every vendor that was not removed, with its sealed key; the oldest first.
SELECT
    id, org_id, name, kind, base_url, is_private, is_default, models, usage_unasked,
    account_headers, is_simulator, sealed_key, key_version, disabled_at IS NOT NULL AS is_disabled
FROM vendors
WHERE removed_at IS NULL
ORDER BY created_at, id

-- name: load_aliases
-- Every alias, with the vendor's name and the model it stands for; `org_id` null: for every org.
SELECT org_id, name, vendor_name, model FROM all_aliases ORDER BY name COLLATE "C"
