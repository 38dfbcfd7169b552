-- How a token stands, with everything that it depends on: what the gateway looks up.

-- `ended` says why a token may do nothing any more, open streams included; null: it may. Expiry is
-- not an end: it refuses new calls only, and is left to the reader, as `expires_at`. A child of a
-- child is refused: nobody would end it with its grandparent.
CREATE VIEW token_standings WITH (security_invoker = true) AS
SELECT
    token.id,
    token.digest,
    token.parent_id,
    token.org_id,
    token.workspace_id,
    token.user_id,
    CASE
        WHEN parent.id IS NULL THEN token.scopes
        ELSE ARRAY(SELECT unnest(token.scopes) INTERSECT SELECT unnest(parent.scopes))
    END AS scopes,
    token.models,
    parent.models AS parent_models,
    least(token.expires_at, parent.expires_at) AS expires_at,
    CASE
        WHEN token.revoked_at IS NOT NULL THEN 'revoked'
        WHEN parent.revoked_at IS NOT NULL THEN 'parent_revoked'
        WHEN parent.parent_id IS NOT NULL THEN 'nested'
        WHEN users.disabled_at IS NOT NULL THEN 'user_disabled'
        WHEN workspaces.archived_at IS NOT NULL THEN 'workspace_archived'
        WHEN orgs.suspended_at IS NOT NULL THEN 'org_suspended'
    END AS ended
FROM tokens AS token
JOIN orgs ON orgs.id = token.org_id
JOIN workspaces ON workspaces.id = token.workspace_id
JOIN users ON users.id = token.user_id
LEFT JOIN tokens AS parent ON parent.id = token.parent_id;

GRANT SELECT ON token_standings TO kaixu_gateway;
