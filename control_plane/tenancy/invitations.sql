-- Invitations to an org, by the digest of the token in their link.

-- name: list
-- Invitations that are open or have run out, in order of address and id, from a place on.
SELECT
    i.id::text, i.email, i.role, i.workspace_id::text, i.workspace_role, i.created_at, i.expires_at,
    u.name AS invited_by, i.email_key AS place
FROM invitations AS i JOIN users AS u ON u.id = i.invited_by AND u.org_id = i.org_id
WHERE i.org_id = $1 AND i.accepted_at IS NULL AND i.withdrawn_at IS NULL
    AND ($3::uuid IS NULL OR (i.email_key COLLATE "C", i.id) > ($2, $3))
ORDER BY i.email_key COLLATE "C", i.id
LIMIT $4

-- name: read
-- An invitation that is open or has run out.
SELECT
    i.id::text, i.email, i.role, i.workspace_id::text, i.workspace_role, i.created_at, i.expires_at,
    u.name AS invited_by
FROM invitations AS i JOIN users AS u ON u.id = i.invited_by AND u.org_id = i.org_id
WHERE i.org_id = $1 AND i.id = $2 AND i.accepted_at IS NULL AND i.withdrawn_at IS NULL

-- name: lock_org
-- Invite one after the other; and what the mail calls the org.
SELECT name FROM orgs WHERE id = $1 FOR UPDATE

-- name: count_open
-- How many invitations are out.
SELECT count(*) FROM invitations
WHERE org_id = $1 AND accepted_at IS NULL AND withdrawn_at IS NULL
    AND expires_at > clock_timestamp()

-- name: is_member
-- Whether an address is a member's already.
SELECT EXISTS (
    SELECT FROM users AS u JOIN accounts AS a ON a.id = u.account_id
    WHERE u.org_id = $1 AND a.email_key = $2 AND u.removed_at IS NULL
)

-- name: workspace_exists
-- Whether the org has a workspace.
SELECT EXISTS (
    SELECT FROM workspaces WHERE org_id = $1 AND id = $2 AND archived_at IS NULL
)

-- name: withdraw_earlier
-- A new invitation takes the place of one that is open: its link is good no more.
UPDATE invitations SET withdrawn_at = clock_timestamp()
WHERE org_id = $1 AND email_key = $2 AND accepted_at IS NULL AND withdrawn_at IS NULL

-- name: create
-- Insert an invitation.
INSERT INTO invitations (
    id, org_id, digest, email, email_key, role, workspace_id, workspace_role, invited_by, expires_at
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, clock_timestamp() + $10::interval)

-- name: withdraw
-- Withdraw an invitation.
UPDATE invitations SET withdrawn_at = clock_timestamp()
WHERE org_id = $1 AND id = $2 AND accepted_at IS NULL AND withdrawn_at IS NULL
RETURNING email, role

-- name: find_org
-- Which org a token invites to.
SELECT org_of_invitation($1)

-- name: accept
-- Use an invitation up, for an account whose address, confirmed, it was sent to. Who invited has to
-- be somebody still who may.
UPDATE invitations AS i SET accepted_at = clock_timestamp()
FROM accounts AS a, users AS inviter, orgs AS o
WHERE i.org_id = $1 AND i.digest = $2
    AND i.accepted_at IS NULL AND i.withdrawn_at IS NULL AND i.expires_at > clock_timestamp()
    AND a.id = $3 AND a.email_key = i.email_key AND a.email_verified_at IS NOT NULL
    AND inviter.id = i.invited_by AND inviter.org_id = i.org_id
    AND inviter.disabled_at IS NULL AND inviter.removed_at IS NULL
    AND o.id = i.org_id
RETURNING
    i.id, i.role, i.workspace_id, i.workspace_role, o.name AS org_name,
    inviter.role AS inviter_role, coalesce(nullif(a.name, ''), a.email) AS name

-- name: join
-- Make an account a member, again where it left; no row where it is one.
INSERT INTO users AS u (org_id, account_id, name, role) VALUES ($1, $2, $3, $4)
ON CONFLICT (account_id, org_id) WHERE account_id IS NOT NULL DO UPDATE
SET name = excluded.name, role = excluded.role, disabled_at = NULL, removed_at = NULL
WHERE u.removed_at IS NOT NULL
RETURNING id

-- name: join_workspace
-- Make a member one of a workspace that lives.
INSERT INTO workspace_members (org_id, workspace_id, user_id, role)
SELECT w.org_id, w.id, $3, $4 FROM workspaces AS w
WHERE w.org_id = $1 AND w.id = $2 AND w.archived_at IS NULL
ON CONFLICT (workspace_id, user_id) DO NOTHING
