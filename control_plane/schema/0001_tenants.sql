-- Who there is: orgs, their workspaces and users, the tokens that call, and the limits on them.

-- The data plane's role; login roles of machines are members of it. Roles are the cluster's, so a
-- second database of the same cluster finds it there.
DO $$
BEGIN
    CREATE ROLE kaixu_gateway NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO kaixu_gateway;

CREATE TABLE orgs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL CHECK (name <> ''),
    created_at timestamptz NOT NULL DEFAULT now(),
    suspended_at timestamptz
);

CREATE TABLE workspaces (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    org_id uuid NOT NULL REFERENCES orgs (id),
    name text NOT NULL CHECK (name <> ''),
    created_at timestamptz NOT NULL DEFAULT now(),
    archived_at timestamptz,
    UNIQUE (org_id, id)
);

CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    org_id uuid NOT NULL REFERENCES orgs (id),
    name text NOT NULL CHECK (name <> ''),
    created_at timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz,
    UNIQUE (org_id, id)
);

-- A token exists as its SHA-256 digest; `hint` is what a person may see of it: prefix and last 4.
CREATE TABLE tokens (
    id uuid PRIMARY KEY,
    digest bytea NOT NULL UNIQUE CHECK (length(digest) = 32),
    hint text NOT NULL,
    name text NOT NULL DEFAULT '',
    org_id uuid NOT NULL,
    workspace_id uuid NOT NULL,
    user_id uuid NOT NULL,
    parent_id uuid REFERENCES tokens (id),
    scopes text[] NOT NULL DEFAULT '{calls}',
    models text[],  -- globs over model names; null: any
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    FOREIGN KEY (org_id, workspace_id) REFERENCES workspaces (org_id, id),
    FOREIGN KEY (org_id, user_id) REFERENCES users (org_id, id)
);
CREATE INDEX tokens_by_org ON tokens (org_id, id);
CREATE INDEX tokens_by_parent ON tokens (parent_id) WHERE parent_id IS NOT NULL;

-- How many calls a UTC month a subject may make; no row: as many as it likes.
CREATE TABLE call_limits (
    kind text NOT NULL CHECK (kind IN ('token', 'user', 'workspace', 'org')),
    subject_id uuid NOT NULL,
    org_id uuid NOT NULL REFERENCES orgs (id),
    calls_a_month bigint NOT NULL CHECK (calls_a_month >= 0),
    PRIMARY KEY (kind, subject_id)
);

-- The one org that a gateway without a control plane serves.
WITH org AS (INSERT INTO orgs (name) VALUES ('default') RETURNING id),
workspace AS (
    INSERT INTO workspaces (org_id, name) SELECT id, 'default' FROM org
)
INSERT INTO users (org_id, name) SELECT id, 'operator' FROM org;

GRANT SELECT ON orgs, workspaces, users, tokens, call_limits TO kaixu_gateway;
