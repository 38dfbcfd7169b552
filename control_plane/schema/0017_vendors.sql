-- Vendors and aliases of single orgs: they go before the operator's, and no other org has them.

-- A gateway of the release before calls every vendor for every org: an org adds its first one when
-- all gateways are of this release.
ALTER TABLE vendors ADD COLUMN disabled_at timestamptz;  -- called by tests of it only
CREATE UNIQUE INDEX vendors_by_org_and_name ON vendors (org_id, name)
WHERE removed_at IS NULL AND org_id IS NOT NULL;

-- The operator's aliases are in `aliases`. `vendor_name` is one of the org's own, or the operator's.
CREATE TABLE org_aliases (
    org_id uuid NOT NULL REFERENCES orgs (id) ON DELETE CASCADE,
    name text NOT NULL,
    vendor_name text NOT NULL,
    model text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (org_id, name)
);
CREATE TRIGGER org_aliases_changed AFTER INSERT OR UPDATE OR DELETE ON org_aliases
FOR EACH STATEMENT EXECUTE FUNCTION vendors_changed();

-- Every alias: `org_id` null for the operator's.
CREATE VIEW all_aliases WITH (security_invoker = true) AS
SELECT NULL::uuid AS org_id, name, vendor_name, model, created_at FROM aliases
UNION ALL
SELECT org_id, name, vendor_name, model, created_at FROM org_aliases;

-- One configurer at a time: what is checked against the others must still hold at the commit.
CREATE FUNCTION lock_vendors() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    LOCK TABLE vendors, aliases, org_aliases IN SHARE ROW EXCLUSIVE MODE;
END
$$;
REVOKE ALL ON FUNCTION lock_vendors() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lock_vendors() TO kaixu_control;

GRANT SELECT ON org_aliases, all_aliases TO kaixu_gateway;

-- The control plane seals keys and writes them; what is sealed it can't even read.
GRANT SELECT (
    id, org_id, name, kind, base_url, is_private, is_default, models, usage_unasked,
    account_headers, is_simulator, key_version, created_at, removed_at, disabled_at
) ON vendors TO kaixu_control;
GRANT INSERT ON vendors TO kaixu_control;
GRANT UPDATE (
    kind, base_url, is_private, is_default, models, usage_unasked, is_simulator, sealed_key,
    key_version, removed_at, disabled_at
) ON vendors TO kaixu_control;
GRANT SELECT ON vault_keys, all_aliases TO kaixu_control;
GRANT SELECT, INSERT, UPDATE, DELETE ON aliases, org_aliases TO kaixu_control;

-- An org's aliases are its own; the operator's are for all to see, and changed in a transaction
-- that belongs to no org.
SELECT isolate('org_aliases', 'org_id = app_org()', by_gateway => true);
SELECT isolate('aliases', 'app_org() IS NULL', by_gateway => true);
CREATE POLICY everyone ON aliases FOR SELECT TO kaixu_control USING (true);

-- Who tests a vendor calls it with a token that is good for a minute, and for this vendor alone: of
-- the asker where they are a member, else of whoever the installation's first org has. Return
-- whose it is; no row: there is no such vendor, or nobody to call for.
CREATE FUNCTION begin_vendor_test(token_id uuid, token_digest bytea, token_hint text, vendor text)
RETURNS TABLE (vendor_id uuid, vendor_kind text, of_org uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    in_org CONSTANT uuid := app_org();
    account CONSTANT uuid := app_account();
    tested vendors;
    scope text;
BEGIN
    SELECT * INTO tested FROM vendors AS v
    WHERE v.name = vendor AND v.removed_at IS NULL AND v.org_id IS NOT DISTINCT FROM in_org;
    scope := 'vendor_test:' || tested.id;
    DELETE FROM tokens WHERE scopes @> ARRAY[scope] AND expires_at < clock_timestamp();
    RETURN QUERY
    WITH made AS (
        INSERT INTO tokens (
            id, digest, hint, name, org_id, workspace_id, user_id, scopes, expires_at
        )
        SELECT
            token_id, token_digest, token_hint, 'test of ' || tested.name, w.org_id, w.id, u.id,
            ARRAY['calls', scope], clock_timestamp() + interval '1 minute'
        FROM workspaces AS w JOIN users AS u ON u.org_id = w.org_id
        WHERE tested.id IS NOT NULL AND w.archived_at IS NULL AND u.disabled_at IS NULL
            AND w.org_id = coalesce(
                in_org, (SELECT o.id FROM orgs AS o ORDER BY o.created_at, o.id LIMIT 1)
            )
            AND (in_org IS NULL OR u.account_id = account)
        ORDER BY w.created_at, w.id, u.created_at, u.id
        LIMIT 1
        RETURNING org_id
    )
    SELECT tested.id, tested.kind, made.org_id FROM made;
END
$$;

-- Its token is of no use any more.
CREATE FUNCTION end_vendor_test(token_id uuid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    DELETE FROM tokens WHERE id = token_id AND scopes[2] LIKE 'vendor\_test:%';
$$;
REVOKE ALL ON FUNCTION
    begin_vendor_test(uuid, bytea, text, text), end_vendor_test(uuid)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION begin_vendor_test(uuid, bytea, text, text), end_vendor_test(uuid)
TO kaixu_control;
