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

-- --------------------------------------------------------------------------------------- a person

-- All that is kept about the account that a transaction belongs to, in whichever orgs.
CREATE FUNCTION personal_data(entries_max integer) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH me AS (
        SELECT a.* FROM accounts AS a
        WHERE a.id = nullif(current_setting('app.account_id', true), '')::uuid
    ),
    member AS (SELECT u.* FROM users AS u JOIN me ON u.account_id = me.id),
    entry AS (
        SELECT l.* FROM audit_log AS l, me
        WHERE l.actor_id = me.id
            OR (l.target_kind IN ('account', 'user', 'member') AND (
                l.target_id = me.id::text OR l.target_id IN (SELECT id::text FROM member)
            ))
        ORDER BY l.at DESC LIMIT entries_max
    )
    SELECT jsonb_build_object(
        'account', (
            SELECT jsonb_build_object(
                'id', id, 'email', email, 'name', name, 'email_verified_at', email_verified_at,
                'password_set', password_hash IS NOT NULL,
                'password_changed_at', password_changed_at, 'is_operator', is_operator,
                'totp_enabled_at', totp_enabled_at, 'created_at', created_at
            ) FROM me
        ),
        'sessions', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'id', s.id, 'created_at', s.created_at, 'last_seen_at', s.last_seen_at,
                'expires_at', s.expires_at, 'methods', s.methods, 'address', s.address,
                'user_agent', s.user_agent, 'ended_at', s.ended_at, 'end_reason', s.end_reason
            ) ORDER BY s.created_at), '[]') FROM sessions AS s JOIN me ON s.account_id = me.id
        ),
        'mailed_links', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'purpose', m.purpose, 'created_at', m.created_at, 'expires_at', m.expires_at,
                'used_at', m.used_at
            ) ORDER BY m.created_at), '[]') FROM mailed_links AS m JOIN me ON m.account_id = me.id
        ),
        'memberships', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'org_id', o.id, 'org', o.name, 'user_id', m.id, 'name', m.name, 'role', m.role,
                'created_at', m.created_at, 'removed_at', m.removed_at,
                'workspaces', (
                    SELECT coalesce(jsonb_agg(jsonb_build_object(
                        'workspace_id', w.workspace_id, 'role', w.role
                    )), '[]') FROM workspace_members AS w WHERE w.user_id = m.id
                )
            ) ORDER BY m.created_at), '[]') FROM member AS m JOIN orgs AS o ON o.id = m.org_id
        ),
        'invitations', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'org_id', i.org_id, 'email', i.email, 'role', i.role, 'created_at', i.created_at,
                'accepted_at', i.accepted_at
            ) ORDER BY i.created_at), '[]')
            FROM invitations AS i JOIN me ON i.email_key = me.email_key
        ),
        'tokens', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'id', t.id, 'org_id', t.org_id, 'workspace_id', t.workspace_id, 'name', t.name,
                'hint', t.hint, 'scopes', t.scopes, 'models', t.models,
                'created_at', t.created_at, 'expires_at', t.expires_at, 'revoked_at', t.revoked_at
            ) ORDER BY t.created_at), '[]') FROM tokens AS t JOIN member AS m ON m.id = t.user_id
        ),
        'usage', (
            SELECT coalesce(jsonb_agg(to_jsonb(used) ORDER BY used.month, used.org_id), '[]')
            FROM (
                SELECT
                    h.org_id, h.user_id, to_char(h.month, 'YYYY-MM') AS month,
                    sum(h.calls) AS calls, sum(h.counted) AS counted,
                    sum(h.input_tokens) AS input_tokens, sum(h.output_tokens) AS output_tokens
                FROM usage_hourly AS h JOIN member AS m ON m.id = h.user_id
                GROUP BY 1, 2, 3
            ) AS used
        ),
        'audit_log', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'id', e.id, 'org_id', e.org_id, 'at', e.at, 'action', e.action,
                'by_you', e.actor_id IS NOT DISTINCT FROM me.id,
                'credential', CASE WHEN e.actor_id = me.id THEN e.credential END,
                'address', CASE WHEN e.actor_id = me.id THEN e.address END,
                'target_kind', e.target_kind, 'target_id', e.target_id,
                'before', e.before, 'after', e.after
            ) ORDER BY e.at DESC), '[]') FROM entry AS e, me
        )
    );
$$;

-- A pattern that finds these addresses in a text in lower case: each as a whole, not as a part of
-- another's that is longer.
CREATE FUNCTION addresses_pattern(addresses text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = public, pg_temp AS $$
    SELECT '(?<![a-z0-9._+-])(?:'
        || string_agg(regexp_replace(one, '([^a-z0-9@])', '\\\1', 'g'), '|')
        || ')(?![a-z0-9-]|\.[a-z0-9])'
    FROM unnest(addresses) AS one;
$$;
REVOKE ALL ON FUNCTION addresses_pattern(text[]) FROM PUBLIC;

-- Take what is personal of someone out of the audit log: where they came from, also as nobody yet,
-- and what was changed about them. Each chain is told how many of its entries that were. What to
-- take is looked for before any chain is locked: others go on meanwhile.
CREATE FUNCTION erase_from_audit_log(person uuid, members uuid[], addresses text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    pattern CONSTANT text := addresses_pattern(addresses);
    chain record;
    touched bigint;
BEGIN
    FOR chain IN
        SELECT
            f.org_id, array_agg(f.id) FILTER (WHERE f.is_theirs) AS theirs,
            array_agg(f.id) FILTER (WHERE f.is_about_them) AS about_them
        FROM (
            SELECT
                l.org_id, l.id,
                l.actor_id IS NOT DISTINCT FROM person
                    OR l.actor_kind = 'anonymous' AND l.target_id = person::text AS is_theirs,
                l.target_id = person::text OR l.target_id = ANY (members::text[])
                    OR lower(concat(l.before, l.after)) ~ pattern AS is_about_them
            FROM audit_log AS l
        ) AS f
        WHERE f.is_theirs OR f.is_about_them
        GROUP BY f.org_id ORDER BY f.org_id NULLS FIRST
    LOOP
        PERFORM FROM audit_heads AS h WHERE h.org_id IS NOT DISTINCT FROM chain.org_id FOR UPDATE;
        WITH found AS (
            SELECT
                l.id, l.id = ANY (coalesce(chain.theirs, '{}')) AS is_theirs,
                l.id = ANY (coalesce(chain.about_them, '{}')) AS is_about_them,
                l.erased_at IS NULL AS is_new
            FROM audit_log AS l WHERE l.id = ANY (chain.theirs || chain.about_them)
        ), erased AS (
            UPDATE audit_log AS l
            SET address = CASE WHEN is_theirs THEN '' ELSE address END,
                address_salt = CASE WHEN NOT is_theirs THEN address_salt END,
                before = CASE WHEN NOT is_about_them THEN before END,
                after = CASE WHEN NOT is_about_them THEN after END,
                change_salt = CASE WHEN NOT is_about_them THEN change_salt END,
                erased_at = coalesce(erased_at, clock_timestamp())
            FROM found
            WHERE l.id = found.id AND (is_theirs OR is_about_them) AND l.version > 1
            RETURNING is_new
        )
        SELECT count(*) FILTER (WHERE is_new) INTO touched FROM erased;
        IF touched > 0 THEN
            PERFORM audit_append(
                chain.org_id, 'account', person, '', '', '', 'audit.erase', 'account',
                person::text, NULL, jsonb_build_object('entries', touched)
            );
        END IF;
    END LOOP;
END
$$;

-- Forget the account that a transaction belongs to. What it used stays in the ledger, under the id
-- of a member without a name. Return the name of an org that it is the only owner of, and then
-- nothing was done; else null.
CREATE FUNCTION erase_account() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    me accounts;
    addresses text[];  -- that it has, and had
    members uuid[];
    owned text;
    is_owner CONSTANT text := 'owner';
BEGIN
    SELECT * INTO STRICT me FROM accounts
    WHERE id = nullif(current_setting('app.account_id', true), '')::uuid FOR UPDATE;
    SELECT coalesce(array_agg(id), '{}') INTO members FROM users WHERE account_id = me.id;
    -- Of two owners who go at once, the second one finds itself alone.
    PERFORM FROM orgs WHERE id IN (SELECT org_id FROM users WHERE id = ANY (members))
    ORDER BY id FOR UPDATE;
    SELECT o.name INTO owned
    FROM users AS u JOIN orgs AS o ON o.id = u.org_id
    WHERE u.id = ANY (members) AND u.role = is_owner AND u.removed_at IS NULL
        AND o.deleted_at IS NULL AND NOT EXISTS (
            SELECT FROM users AS other JOIN accounts AS a ON a.id = other.account_id
            WHERE other.org_id = u.org_id AND other.id <> u.id AND other.role = is_owner
                AND other.removed_at IS NULL AND other.disabled_at IS NULL
                AND a.disabled_at IS NULL
        )
    ORDER BY o.name LIMIT 1;
    IF owned IS NOT NULL THEN
        RETURN owned;
    END IF;

    -- Addresses that it had before, unless they are somebody else's by now.
    SELECT array_agg(DISTINCT one) INTO addresses
    FROM (
        SELECT me.email_key AS one
        UNION ALL
        SELECT lower(l.before ->> 'email') FROM audit_log AS l
        WHERE l.org_id IS NULL AND l.actor_id = me.id AND l.action = 'account.change_email'
            AND l.before ->> 'email' <> ''
    ) AS had
    WHERE one = me.email_key OR NOT EXISTS (SELECT FROM accounts AS a WHERE a.email_key = one);

    UPDATE tokens SET revoked_at = coalesce(revoked_at, clock_timestamp()), name = ''
    WHERE user_id = ANY (members);
    DELETE FROM workspace_members WHERE user_id = ANY (members);
    UPDATE users
    SET account_id = NULL, name = 'deleted', disabled_at = coalesce(disabled_at, clock_timestamp()),
        removed_at = coalesce(removed_at, clock_timestamp())
    WHERE id = ANY (members);
    UPDATE invitations
    SET email = 'deleted', email_key = 'deleted:' || id,
        withdrawn_at = CASE
            WHEN accepted_at IS NULL THEN coalesce(withdrawn_at, clock_timestamp())
            ELSE withdrawn_at
        END
    WHERE email_key = ANY (addresses);
    DELETE FROM signups WHERE email_key = ANY (addresses);
    -- What others were answered about them lately.
    DELETE FROM idempotency_keys
    WHERE lower(convert_from(answer, 'UTF8')) ~ addresses_pattern(addresses);
    DELETE FROM accounts WHERE id = me.id;  -- sessions, links, codes and answers go along
    PERFORM erase_from_audit_log(me.id, members, addresses);
    PERFORM audit_append(
        NULL, 'account', me.id, '', '', '', 'account.delete', 'account', me.id::text, NULL, NULL
    );
    RETURN NULL;
END
$$;

-- -------------------------------------------------------------------------------------- retention

-- How many days what is kept; null: for ever.
CREATE TABLE retention (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    refusals_days integer NOT NULL DEFAULT 30 CHECK (refusals_days BETWEEN 1 AND 3650),
    sessions_days integer NOT NULL DEFAULT 90 CHECK (sessions_days BETWEEN 1 AND 3650),
    mailed_links_days integer NOT NULL DEFAULT 7 CHECK (mailed_links_days BETWEEN 1 AND 3650),
    audit_days integer CHECK (audit_days BETWEEN 90 AND 3650)
);
INSERT INTO retention DEFAULT VALUES;

CREATE OR REPLACE FUNCTION prune_refusals() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH old AS (
        SELECT id FROM refusals
        WHERE at < clock_timestamp() - make_interval(days => (SELECT refusals_days FROM retention))
        ORDER BY at LIMIT 10000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM refusals USING old WHERE refusals.id = old.id RETURNING refusals.id
    )
    SELECT count(*) FROM gone;
$$;

CREATE FUNCTION prune_sessions() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH old AS (
        SELECT id FROM sessions
        WHERE least(coalesce(ended_at, expires_at), expires_at)
            < clock_timestamp() - make_interval(days => (SELECT sessions_days FROM retention))
        LIMIT 10000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM sessions USING old WHERE sessions.id = old.id RETURNING sessions.id
    )
    SELECT count(*) FROM gone;
$$;

CREATE FUNCTION prune_mailed_links() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH old AS (
        SELECT digest FROM mailed_links
        WHERE expires_at
            < clock_timestamp() - make_interval(days => (SELECT mailed_links_days FROM retention))
        LIMIT 10000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM mailed_links USING old WHERE mailed_links.digest = old.digest
        RETURNING mailed_links.digest
    )
    SELECT count(*) FROM gone;
$$;

CREATE FUNCTION prune_idempotency_keys() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
        DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM idempotency_keys
            WHERE created_at < clock_timestamp() - interval '24 hours' LIMIT 10000
        )) RETURNING 1
    )
    SELECT count(*) FROM gone;
$$;

-- Of each chain the oldest entries, up to the first that is still to be kept; the chain is told.
CREATE FUNCTION prune_audit_log() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    days CONSTANT integer := (SELECT audit_days FROM retention);
    chain record;
    head audit_heads;
    final record;
    total bigint := 0;
BEGIN
    IF days IS NULL THEN
        RETURN 0;
    END IF;
    FOR chain IN SELECT org_id FROM audit_heads ORDER BY org_id NULLS FIRST LOOP
        SELECT * INTO head FROM audit_heads AS h
        WHERE h.org_id IS NOT DISTINCT FROM chain.org_id FOR UPDATE;
        SELECT l.ordinal, l.hash INTO final
        FROM audit_log AS l
        WHERE l.org_id IS NOT DISTINCT FROM head.org_id AND l.ordinal <= head.pruned + 10000
            AND l.ordinal < coalesce((
                SELECT min(k.ordinal) FROM audit_log AS k
                WHERE k.org_id IS NOT DISTINCT FROM head.org_id
                    AND k.ordinal <= head.pruned + 10001
                    AND k.at >= clock_timestamp() - make_interval(days => days)
            ), l.ordinal + 1)
        ORDER BY l.ordinal DESC LIMIT 1;
        CONTINUE WHEN final.ordinal IS NULL;
        DELETE FROM audit_log
        WHERE org_id IS NOT DISTINCT FROM head.org_id AND ordinal <= final.ordinal;
        UPDATE audit_heads AS h SET pruned = final.ordinal, pruned_hash = final.hash
        WHERE h.org_id IS NOT DISTINCT FROM head.org_id;
        PERFORM audit_append(
            head.org_id, 'system', NULL, '', '', '', 'audit.prune', 'audit_log', '', NULL,
            jsonb_build_object('through', final.ordinal)
        );
        total := total + final.ordinal - head.pruned;
    END LOOP;
    RETURN total;
END
$$;

REVOKE ALL ON FUNCTION
    personal_data(integer), erase_from_audit_log(uuid, uuid[], text[]), erase_account(),
    prune_sessions(), prune_mailed_links(), prune_idempotency_keys(), prune_audit_log()
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    personal_data(integer), erase_account(), prune_refusals(), prune_sessions(),
    prune_mailed_links(), prune_idempotency_keys(), prune_audit_log()
TO kaixu_control;
GRANT SELECT, UPDATE ON retention TO kaixu_control;
