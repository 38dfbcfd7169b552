-- What is personal can be erased, and the audit log still be verified; what is old can be forgotten.

-- The hash of an entry is taken over digests of what may be personal, not over the thing itself:
-- the address it came from, and what was before and after. Each digest has a salt of its own, which
-- goes together with what it hides, so that nobody can find out by trying.
ALTER TABLE audit_log
    ADD COLUMN version smallint NOT NULL DEFAULT 1,  -- 1: the hash is over everything as it stands
    ADD COLUMN address_salt bytea,
    ADD COLUMN address_digest bytea,
    ADD COLUMN change_salt bytea,
    ADD COLUMN change_digest bytea,
    ADD COLUMN erased_at timestamptz;
CREATE INDEX audit_log_by_actor ON audit_log (org_id, actor_id, ordinal);
CREATE INDEX audit_log_by_person ON audit_log (actor_id) WHERE actor_id IS NOT NULL;

-- Entries up to `pruned` were forgotten, the last of them with this hash; the chain goes on from it.
ALTER TABLE audit_heads
    ADD COLUMN pruned bigint NOT NULL DEFAULT 0,
    ADD COLUMN pruned_hash bytea NOT NULL DEFAULT '\x';

CREATE FUNCTION audit_address_text(entry audit_log) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = public, pg_temp AS $$
    SELECT jsonb_build_array(entry.id, entry.address)::text;
$$;

CREATE FUNCTION audit_change_text(entry audit_log) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = public, pg_temp AS $$
    SELECT jsonb_build_array(entry.id, entry.before, entry.after)::text;
$$;

-- What an entry's hash is taken over, after the previous entry's.
CREATE OR REPLACE FUNCTION audit_text(entry audit_log) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = public, pg_temp AS $$
    SELECT CASE entry.version
        WHEN 1 THEN jsonb_build_array(
            entry.id, entry.org_id, entry.ordinal,
            extract(epoch FROM entry.at)::numeric(20, 6)::text, entry.actor_kind, entry.actor_id,
            entry.credential, entry.address, entry.request_id, entry.action, entry.target_kind,
            entry.target_id, entry.before, entry.after
        )
        ELSE jsonb_build_array(
            entry.version, entry.id, entry.org_id, entry.ordinal,
            extract(epoch FROM entry.at)::numeric(20, 6)::text, entry.actor_kind, entry.actor_id,
            entry.credential, entry.request_id, entry.action, entry.target_kind, entry.target_id,
            encode(entry.address_digest, 'hex'), encode(entry.change_digest, 'hex')
        )
    END::text;
$$;

CREATE OR REPLACE FUNCTION audit_append(
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
    entry.id := gen_random_uuid();
    entry.org_id := org;
    entry.ordinal := head.last + 1;
    entry.at := clock_timestamp();
    entry.actor_kind := actor_kind;
    entry.actor_id := actor_id;
    entry.credential := credential;
    entry.address := address;
    entry.request_id := request_id;
    entry.action := action;
    entry.target_kind := target_kind;
    entry.target_id := target_id;
    entry.before := before;
    entry.after := after;
    entry.version := 2;
    entry.address_salt := uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
    entry.change_salt := uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
    entry.address_digest :=
        sha256(entry.address_salt || convert_to(audit_address_text(entry), 'UTF8'));
    entry.change_digest :=
        sha256(entry.change_salt || convert_to(audit_change_text(entry), 'UTF8'));
    entry.hash := sha256(head.last_hash || convert_to(audit_text(entry), 'UTF8'));
    INSERT INTO audit_log VALUES (entry.*);
    UPDATE audit_heads AS h SET last = entry.ordinal, last_hash = entry.hash
    WHERE h.org_id IS NOT DISTINCT FROM org;
END
$$;
REVOKE ALL ON FUNCTION audit_address_text(audit_log), audit_change_text(audit_log) FROM PUBLIC;
