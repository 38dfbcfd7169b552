-- People: their accounts and sessions, and what each of them is in an org and its workspaces.

-- The control plane's role; login roles of machines are members of it.
DO $$
BEGIN
    CREATE ROLE kaixu_control NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;
GRANT USAGE ON SCHEMA public TO kaixu_control;

-- A person, in whichever orgs. `email_key` is what two spellings of one address have in common.
CREATE TABLE accounts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email text NOT NULL CHECK (email <> '' AND length(email) <= 254),
    email_key text NOT NULL UNIQUE,
    email_verified_at timestamptz,
    name text NOT NULL DEFAULT '' CHECK (length(name) <= 200),
    password_hash text,  -- bcrypt; null: signs in by other means only
    password_changed_at timestamptz,
    is_operator boolean NOT NULL DEFAULT false,  -- runs this installation
    totp_sealed bytea,  -- the seed; present but not enabled: being set up
    totp_enabled_at timestamptz,
    totp_last_step bigint,  -- of the last code taken: none is taken twice
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    disabled_at timestamptz,
    CHECK (totp_enabled_at IS NULL OR totp_sealed IS NOT NULL)
);

-- Codes that stand in for a lost authenticator, as SHA-256 digests, each good once.
CREATE TABLE recovery_codes (
    account_id uuid NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    digest bytea NOT NULL CHECK (length(digest) = 32),
    used_at timestamptz,
    PRIMARY KEY (account_id, digest)
);

-- A session is what a JWT stands for; it ends here, whatever the JWT says.
CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    authenticated_at timestamptz NOT NULL DEFAULT clock_timestamp(),  -- last time it was proven who
    methods text[] NOT NULL,  -- RFC 8176: pwd, otp, mfa, fed
    address text NOT NULL DEFAULT '',
    user_agent text NOT NULL DEFAULT '',
    ended_at timestamptz,
    end_reason text
);
CREATE INDEX sessions_by_account ON sessions (account_id) WHERE ended_at IS NULL;

-- Links that were sent by mail, as SHA-256 digests: each good once, for one thing, for a while.
CREATE TABLE mailed_links (
    digest bytea PRIMARY KEY CHECK (length(digest) = 32),
    purpose text NOT NULL CHECK (purpose IN ('verify_email', 'reset_password')),
    account_id uuid NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    email_key text NOT NULL,  -- of the address it went to: void once the account has another
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);
CREATE INDEX mailed_links_by_account ON mailed_links (account_id);

-- What an org asks of its members.
ALTER TABLE orgs
    ADD COLUMN requires_totp boolean NOT NULL DEFAULT false,
    ADD COLUMN token_life_max interval NOT NULL DEFAULT interval '90 days'
        CHECK (token_life_max > interval '0' AND token_life_max <= interval '90 days'),
    ADD COLUMN deleted_at timestamptz;

-- A row of `users` is a member: an account in one org. Without an account it stands for a machine.
ALTER TABLE users
    ADD COLUMN account_id uuid REFERENCES accounts (id),
    ADD COLUMN role text NOT NULL DEFAULT 'viewer'
        CHECK (role IN ('owner', 'admin', 'editor', 'viewer')),
    ADD COLUMN removed_at timestamptz;  -- left the org; the row stays, rows of the ledger name it
CREATE UNIQUE INDEX users_by_account ON users (account_id, org_id) WHERE account_id IS NOT NULL;

CREATE UNIQUE INDEX workspaces_by_name ON workspaces (org_id, name) WHERE archived_at IS NULL;

CREATE TABLE workspace_members (
    org_id uuid NOT NULL,
    workspace_id uuid NOT NULL,
    user_id uuid NOT NULL,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'editor', 'viewer')),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (workspace_id, user_id),
    FOREIGN KEY (org_id, workspace_id) REFERENCES workspaces (org_id, id) ON DELETE CASCADE,
    FOREIGN KEY (org_id, user_id) REFERENCES users (org_id, id) ON DELETE CASCADE
);
CREATE INDEX workspace_members_by_user ON workspace_members (user_id);

-- Invitations, by the SHA-256 of the `kxi_` token in their link.
CREATE TABLE invitations (
    id uuid PRIMARY KEY,
    org_id uuid NOT NULL REFERENCES orgs (id) ON DELETE CASCADE,
    digest bytea NOT NULL UNIQUE CHECK (length(digest) = 32),
    email text NOT NULL,
    email_key text NOT NULL,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'editor', 'viewer')),
    workspace_id uuid,  -- with `workspace_role`: what the invited one becomes there as well
    workspace_role text CHECK (workspace_role IN ('owner', 'admin', 'editor', 'viewer')),
    invited_by uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    accepted_at timestamptz,
    withdrawn_at timestamptz,
    CHECK ((workspace_id IS NULL) = (workspace_role IS NULL)),
    FOREIGN KEY (org_id, workspace_id) REFERENCES workspaces (org_id, id) ON DELETE CASCADE,
    FOREIGN KEY (org_id, invited_by) REFERENCES users (org_id, id)
);
CREATE UNIQUE INDEX invitations_open ON invitations (org_id, email_key)
WHERE accepted_at IS NULL AND withdrawn_at IS NULL;

GRANT SELECT, INSERT, UPDATE ON
    accounts, recovery_codes, sessions, mailed_links, orgs, users, workspaces, workspace_members,
    invitations, tokens
TO kaixu_control;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    call_limits, rate_limits, concurrency_limits, recovery_codes, workspace_members
TO kaixu_control;
GRANT SELECT ON change_head, change_log, workers, confirmations, token_standings TO kaixu_control;
GRANT SELECT ON usage_events, usage_hourly, allowances TO kaixu_control;
