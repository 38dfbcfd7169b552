-- Gateway tokens as people manage them: whom they may call and from where, who made them, secrets
-- that are being replaced, and tokens that end many at a time.

ALTER TABLE tokens
    ADD COLUMN vendors text[],  -- names of vendors; null: any
    ADD COLUMN addresses cidr[],  -- networks that calls come from; null: any
    ADD COLUMN created_by uuid,  -- a member of the org; null: a command
    ADD COLUMN issued_at timestamptz,  -- of the present secret; null: it is the first
    ADD FOREIGN KEY (org_id, created_by) REFERENCES users (org_id, id);

-- Secrets that were replaced, which open their token until then. The token stays the same row, so
-- that what it used and what limits it go on.
CREATE TABLE retired_digests (
    digest bytea PRIMARY KEY CHECK (length(digest) = 32),
    token_id uuid NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    org_id uuid NOT NULL REFERENCES orgs (id),
    until timestamptz NOT NULL
);
CREATE INDEX retired_digests_by_token ON retired_digests (token_id);
ALTER TABLE retired_digests ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON retired_digests TO CURRENT_USER USING (true);
CREATE POLICY gateway ON retired_digests TO kaixu_gateway USING (true);
CREATE POLICY tenant ON retired_digests TO kaixu_control
USING (org_id = nullif(current_setting('app.org_id', true), '')::uuid);

-- A secret whose time is cut short is a change of its token; one that has run out is none.
CREATE FUNCTION retired_digest_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF OLD.until > clock_timestamp() THEN
        PERFORM log_change('token', OLD.token_id, 'changed');
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER retired_digest_changed AFTER UPDATE OR DELETE ON retired_digests
FOR EACH ROW EXECUTE FUNCTION retired_digest_changed();

-- As in 0003, and of the new columns too. Where all tokens of an org or of a user end at once, that
-- one stands for them: `kaixu.revocation_scope` says so ('org', 'user'), for one transaction. To say
-- it without need cuts more streams, and lets none live.
CREATE OR REPLACE FUNCTION tokens_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    tokens_named_max CONSTANT integer := 100;
    scope CONSTANT text := coalesce(current_setting('kaixu.revocation_scope', true), '');
BEGIN
    WITH touched AS (
        SELECT
            after.id,
            after.org_id,
            after.user_id,
            before.revoked_at IS NULL AND after.revoked_at IS NOT NULL AS is_dead,
            before.org_id <> after.org_id
                OR count(*) OVER (PARTITION BY after.org_id) <= tokens_named_max AS is_named
        FROM old_tokens AS before JOIN new_tokens AS after ON after.id = before.id
        WHERE (
            before.digest, before.org_id, before.workspace_id, before.user_id, before.parent_id,
            before.scopes, before.models, before.vendors, before.addresses, before.expires_at,
            before.revoked_at
        ) IS DISTINCT FROM (
            after.digest, after.org_id, after.workspace_id, after.user_id, after.parent_id,
            after.scopes, after.models, after.vendors, after.addresses, after.expires_at,
            after.revoked_at
        )
    ),
    stands AS (
        SELECT
            touched.*,
            CASE
                WHEN is_dead AND scope IN ('org', 'user') THEN scope
                WHEN is_dead OR is_named THEN 'token'
                ELSE 'org'
            END AS kind
        FROM touched
    ),
    change AS (
        SELECT DISTINCT
            kind,
            CASE kind WHEN 'token' THEN id WHEN 'user' THEN user_id ELSE org_id END AS subject_id,
            CASE WHEN is_dead THEN 'dead' ELSE 'changed' END AS effect
        FROM stands
    )
    INSERT INTO change_log (kind, subject_id, effect) SELECT kind, subject_id, effect FROM change
    ON CONFLICT (xact, kind, subject_id, effect) WHERE ordinal IS NULL DO NOTHING;
    RETURN NULL;
END
$$;

-- As in 0006, with the lists that came since; those of a child token and of its parent both hold.
CREATE OR REPLACE VIEW token_standings WITH (security_invoker = true) AS
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
    END AS ended,
    token.vendors,
    parent.vendors AS parent_vendors,
    token.addresses,
    parent.addresses AS parent_addresses
FROM tokens AS token
JOIN orgs ON orgs.id = token.org_id
JOIN workspaces ON workspaces.id = token.workspace_id
JOIN users ON users.id = token.user_id
LEFT JOIN tokens AS parent ON parent.id = token.parent_id;

-- An org that lets tokens live shorter from now on shortens those that it has, as of now: none
-- outlives the new cap, and none ends in the moment in which somebody moves a setting.
CREATE FUNCTION token_life_lowered() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE tokens SET expires_at = clock_timestamp() + NEW.token_life_max
    WHERE org_id = NEW.id AND revoked_at IS NULL
        AND expires_at > clock_timestamp() + NEW.token_life_max;
    RETURN NULL;
END
$$;
CREATE TRIGGER token_life_lowered AFTER UPDATE OF token_life_max ON orgs
FOR EACH ROW WHEN (NEW.token_life_max < OLD.token_life_max)
EXECUTE FUNCTION token_life_lowered();

-- Every token of every org, one change for each org.
CREATE FUNCTION revoke_every_token() RETURNS bigint
LANGUAGE sql SECURITY DEFINER
SET search_path = public, pg_temp SET kaixu.revocation_scope = 'org' AS $$
    WITH ended AS (
        UPDATE tokens SET revoked_at = clock_timestamp() WHERE revoked_at IS NULL RETURNING id
    )
    SELECT count(*) FROM ended;
$$;

-- What whoever holds a secret may do with it: end it. One that was replaced ends alone: who found it
-- does not hold the one that replaced it. Returns whose it was, nothing where it opened nothing.
CREATE FUNCTION revoke_shown_secret(
    shown bytea, OUT org_id uuid, OUT token_id uuid, OUT is_retired boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE tokens AS t SET revoked_at = clock_timestamp()
    WHERE t.digest = shown AND t.revoked_at IS NULL
    RETURNING t.org_id, t.id, false INTO org_id, token_id, is_retired;
    IF NOT FOUND THEN
        DELETE FROM retired_digests AS r WHERE r.digest = shown AND r.until > clock_timestamp()
        RETURNING r.org_id, r.token_id, true INTO org_id, token_id, is_retired;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION
    retired_digest_changed(), token_life_lowered(), revoke_every_token(), revoke_shown_secret(bytea)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION revoke_every_token(), revoke_shown_secret(bytea) TO kaixu_control;
GRANT SELECT ON retired_digests TO kaixu_gateway;
GRANT SELECT, INSERT, UPDATE, DELETE ON retired_digests TO kaixu_control;
CREATE INDEX tokens_by_user ON tokens (user_id, id);

-- A token with its own limits, as the members of its org may see it.
CREATE VIEW token_details WITH (security_invoker = true) AS
SELECT
    t.org_id, t.id, t.hint, t.name, s.state, t.workspace_id, t.user_id, t.parent_id, t.created_by,
    t.scopes, t.models, t.vendors, t.addresses::text[] AS addresses, l.calls_a_month AS "limit",
    r.calls || '/' || r.window_seconds || 's' AS rate, c.calls AS concurrency, t.created_at,
    coalesce(t.issued_at, t.created_at) AS issued_at, t.expires_at, t.revoked_at,
    old.until AS old_secret_until
FROM tokens AS t
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN t.revoked_at IS NOT NULL THEN 'revoked'
        WHEN t.expires_at <= clock_timestamp() THEN 'expired'
        ELSE 'live'
    END AS state
) AS s
LEFT JOIN call_limits AS l ON l.kind = 'token' AND l.subject_id = t.id
LEFT JOIN rate_limits AS r ON r.kind = 'token' AND r.subject_id = t.id
LEFT JOIN concurrency_limits AS c ON c.kind = 'token' AND c.subject_id = t.id
LEFT JOIN LATERAL (
    SELECT max(until) AS until FROM retired_digests
    WHERE token_id = t.id AND until > clock_timestamp()
) AS old ON true;
GRANT SELECT ON token_details TO kaixu_control;
