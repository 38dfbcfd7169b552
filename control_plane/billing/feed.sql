-- name: ledger_id
-- Which ledger this is; a restored one gets another id.
SELECT ledger_id::text FROM ledger_head

-- name: find
-- Whether the ledger has exactly this row.
SELECT true FROM usage_events WHERE id = $2 AND ordinal = $1

-- name: read
-- The next events in the order in which they were committed.
SELECT * FROM usage_feed WHERE ordinal > $1 ORDER BY ordinal LIMIT $2

-- name: read_of_org
-- The next events of an org that are in some workspaces (null: any) or a user's, in that order.
SELECT * FROM usage_feed
WHERE org_id = $1
    AND ordinal > $2
    AND ($3::uuid[] IS NULL OR workspace_id = ANY ($3) OR user_id = $4)
ORDER BY ordinal
LIMIT $5
