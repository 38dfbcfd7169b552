-- Who changed what: append-only, each entry chained to the one before by its hash.

-- One chain for each org and one (null org) for the installation; its row's lock is held to the
-- commit, so that entries appear in order and a gap or a fork can't be.
CREATE TABLE audit_heads (
    org_id uuid UNIQUE NULLS NOT DISTINCT REFERENCES orgs (id),
    last bigint NOT NULL DEFAULT 0,
    last_hash bytea NOT NULL DEFAULT '\x'
);

CREATE TABLE audit_log (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    org_id uuid REFERENCES orgs (id),  -- null: the installation's own
    ordinal bigint NOT NULL,  -- in its chain
    at timestamptz NOT NULL,
    actor_kind text NOT NULL CHECK (actor_kind IN ('account', 'operator', 'anonymous', 'system')),
    actor_id uuid,  -- of an account
    credential text NOT NULL,  -- what it was proven by: "session <id>", "command", "link", ""
    address text NOT NULL,
    request_id text NOT NULL,
    action text NOT NULL CHECK (action ~ '^[a-z_]+\.[a-z_]+$'),  -- as in token.revoke
    target_kind text NOT NULL,
    target_id text NOT NULL,
    before jsonb,
    after jsonb,
    hash bytea NOT NULL,  -- SHA-256 over the previous entry's and everything above, as text
    UNIQUE NULLS NOT DISTINCT (org_id, ordinal)
);
CREATE INDEX audit_log_by_time ON audit_log (org_id, at);

-- What an entry's hash is taken over, after the previous entry's.
CREATE FUNCTION audit_text(entry audit_log) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = public, pg_temp AS $$
    SELECT jsonb_build_array(
        entry.id, entry.org_id, entry.ordinal,
        extract(epoch FROM entry.at)::numeric(20, 6)::text, entry.actor_kind, entry.actor_id,
        entry.credential, entry.address, entry.request_id, entry.action, entry.target_kind,
        entry.target_id, entry.before, entry.after
    )::text;
$$;

-- Append an entry; nobody can write one in another way.
CREATE FUNCTION audit_append(
    org uuid, actor_kind text, actor_id uuid, credential text, address text, request_id text,
    action text, target_kind text, target_id text, before jsonb, after jsonb
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    head audit_heads;
    entry audit_log;
BEGIN
    INSERT INTO audit_heads (org_id) VALUES (org) ON CONFLICT (org_id) DO NOTHING;
    SELECT * INTO head FROM audit_heads AS h WHERE h.org_id IS NOT DISTINCT FROM org FOR UPDATE;
    entry := ROW(
        gen_random_uuid(), org, head.last + 1, clock_timestamp(), actor_kind, actor_id, credential,
        address, request_id, action, target_kind, target_id, before, after, '\x'
    );
    entry.hash := sha256(head.last_hash || convert_to(audit_text(entry), 'UTF8'));
    INSERT INTO audit_log VALUES (entry.*);
    UPDATE audit_heads AS h SET last = entry.ordinal, last_hash = entry.hash
    WHERE h.org_id IS NOT DISTINCT FROM org;
END
$$;
REVOKE ALL ON FUNCTION
    audit_text(audit_log),
    audit_append(uuid, text, uuid, text, text, text, text, text, text, jsonb, jsonb)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    audit_append(uuid, text, uuid, text, text, text, text, text, text, jsonb, jsonb)
TO kaixu_control;
GRANT SELECT ON audit_log, audit_heads TO kaixu_control;
