-- Gateway tokens, as the members of their org may see them.

-- name: lock
-- Keep others from changing a token until this transaction ends.
SELECT true FROM tokens WHERE org_id = $1 AND id = $2 FOR UPDATE

-- name: find
-- A token of an org.
SELECT * FROM token_details WHERE org_id = $1 AND id = $2

-- name: list
-- Tokens of an org that are in some workspaces (null: any) or a user's, newest first.
SELECT * FROM token_details
WHERE org_id = $1
    AND ($2::uuid[] IS NULL OR workspace_id = ANY ($2) OR user_id = $3)
    AND ($4::uuid IS NULL OR workspace_id = $4)
    AND ($5::uuid IS NULL OR user_id = $5)
    AND ($6::uuid IS NULL OR parent_id = $6)
    AND ($7::text IS NULL OR state = $7)
    AND ($8::uuid IS NULL OR id < $8)
ORDER BY id DESC
LIMIT $9
