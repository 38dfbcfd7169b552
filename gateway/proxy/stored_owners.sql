-- Which org made what vendors keep.

-- name: add
-- Record who made what; gives those ids that someone had already, this org or another one.
WITH noted AS (
    SELECT DISTINCT ON (object_id, vendor_id) *
    FROM unnest(
        $1::text[], $2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::uuid[], $7::uuid[],
        $8::uuid[], $9::uuid[]
    ) WITH ORDINALITY AS n (
        object_id, vendor_id, kind, parent_id, org_id, workspace_id, user_id, token_id, call_id,
        place
    )
    ORDER BY object_id, vendor_id, place
), made AS (
    INSERT INTO stored_objects (
        object_id, vendor_id, kind, parent_id, org_id, workspace_id, user_id, token_id, call_id
    )
    SELECT
        object_id, vendor_id, kind, parent_id, org_id, workspace_id, user_id, token_id, call_id
    FROM noted
    ORDER BY object_id, vendor_id
    ON CONFLICT DO NOTHING
    RETURNING object_id, vendor_id
)
SELECT n.object_id
FROM noted AS n
LEFT JOIN made AS m ON m.object_id = n.object_id AND m.vendor_id = n.vendor_id
WHERE m.object_id IS NULL

-- name: find
-- Who made these, at whichever vendor.
SELECT object_id, vendor_id::text, kind, parent_id, org_id::text
FROM stored_objects
WHERE object_id = ANY ($1::text[])

-- name: prune
-- Forget what vendors have forgotten long before, some at a time; says how much that was.
SELECT prune_stored_objects() AS pruned
