-- Whose rows are whose: the database itself keeps orgs apart, under whatever query.
--
-- A transaction of the control plane says which org, and which account, it belongs to. Nothing said:
-- it sees no org's rows. What has to look further, before the org is known, is a SECURITY DEFINER
-- function: it runs as the owner. The gateway looks tokens up before their org is known, and sees
-- all rows of the tables that it has grants for.

CREATE FUNCTION app_org() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('app.org_id', true), '')::uuid;
$$;

CREATE FUNCTION app_account() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('app.account_id', true), '')::uuid;
$$;

-- Put a table under row security. `condition` is what a row that belongs to the transaction holds.
-- The owner is bound as well where it is no superuser, so it has a policy of its own: it is what
-- SECURITY DEFINER functions run as, and commands.
CREATE FUNCTION isolate(isolated regclass, condition text, by_gateway boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    owned_by regrole;
BEGIN
    SELECT relowner::regrole INTO STRICT owned_by FROM pg_class WHERE oid = isolated;
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', isolated);
    EXECUTE format(
        'CREATE POLICY owner ON %s TO %s USING (true) WITH CHECK (true)', isolated, owned_by
    );
    EXECUTE format(
        'CREATE POLICY tenant ON %s TO kaixu_control USING (%s) WITH CHECK (%s)',
        isolated, condition, condition
    );
    IF by_gateway THEN
        EXECUTE format(
            'CREATE POLICY gateway ON %s TO kaixu_gateway USING (true) WITH CHECK (true)', isolated
        );
    END IF;
END
$$;

SELECT isolate('orgs', 'id = app_org()', by_gateway => true);
SELECT isolate(name::regclass, 'org_id = app_org()', by_gateway => true)
FROM unnest(ARRAY[
    'workspaces', 'users', 'tokens', 'call_limits', 'rate_limits', 'concurrency_limits',
    'refusals', 'stored_objects'
]) AS name;
SELECT isolate(name::regclass, 'org_id = app_org()')
FROM unnest(ARRAY[
    'workspace_members', 'invitations', 'usage_events', 'usage_hourly'
]) AS name;
SELECT isolate(relid, 'org_id = app_org()') FROM pg_partition_tree('usage_events') WHERE level > 0;

-- Rows without an org are the installation's: they belong to a transaction that belongs to no org.
SELECT isolate(name::regclass, 'org_id = app_org() OR org_id IS NULL AND app_org() IS NULL')
FROM unnest(ARRAY['audit_heads', 'audit_log']) AS name;
SELECT isolate(
    'vendors', 'org_id = app_org() OR org_id IS NULL AND app_org() IS NULL', by_gateway => true
);
-- Its vendors serve every org.
CREATE POLICY everyone ON vendors FOR SELECT TO kaixu_control USING (org_id IS NULL);

-- People see what they are in which orgs, in a transaction that is about none of them.
CREATE POLICY member ON users FOR SELECT TO kaixu_control USING (
    app_org() IS NULL AND account_id = app_account()
);
CREATE POLICY member ON orgs FOR SELECT TO kaixu_control USING (
    app_org() IS NULL
    AND id IN (SELECT u.org_id FROM users AS u WHERE u.account_id = app_account())
);
CREATE POLICY member ON workspace_members FOR SELECT TO kaixu_control USING (
    app_org() IS NULL
    AND user_id IN (SELECT u.id FROM users AS u WHERE u.account_id = app_account())
);
CREATE POLICY member ON workspaces FOR SELECT TO kaixu_control USING (
    app_org() IS NULL AND id IN (SELECT m.workspace_id FROM workspace_members AS m)
);

-- A month's allowance is its subject's.
SELECT isolate('allowances', $$
    CASE kind
        WHEN 'org' THEN subject_id = app_org()
        WHEN 'workspace' THEN EXISTS (
            SELECT FROM workspaces AS s WHERE s.id = subject_id AND s.org_id = app_org()
        )
        WHEN 'user' THEN EXISTS (
            SELECT FROM users AS s WHERE s.id = subject_id AND s.org_id = app_org()
        )
        WHEN 'token' THEN EXISTS (
            SELECT FROM tokens AS s WHERE s.id = subject_id AND s.org_id = app_org()
        )
        ELSE false
    END
$$);

-- As before, but a new month's partition is under row security too.
CREATE OR REPLACE FUNCTION ensure_partitions() RETURNS integer
LANGUAGE plpgsql SET search_path = public, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    this_month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    starts timestamp;
    lower uuid;
    upper uuid;
    name text;
    made integer := 0;
BEGIN
    FOR ahead IN -1..2 LOOP
        starts := this_month + make_interval(months => ahead);
        lower := uuid_v7_floor(starts AT TIME ZONE 'UTC');
        upper := uuid_v7_floor((starts + interval '1 month') AT TIME ZONE 'UTC');
        name := 'usage_events_' || to_char(starts, 'YYYY_MM');
        CONTINUE WHEN to_regclass(name) IS NOT NULL;
        -- Nobody appends meanwhile: the locks below would be taken in another order than theirs.
        PERFORM 1 FROM ledger_head FOR UPDATE;
        EXECUTE format('CREATE TABLE %I (LIKE usage_events INCLUDING ALL)', name);
        PERFORM isolate(name::regclass, 'org_id = app_org()');
        EXECUTE format(
            'WITH moved AS (
                DELETE FROM usage_events_default WHERE id >= %L AND id < %L RETURNING *
            )
            INSERT INTO %I SELECT * FROM moved',
            lower, upper, name
        );
        EXECUTE format(
            'ALTER TABLE usage_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            name, lower, upper
        );
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

REVOKE ALL ON FUNCTION isolate(regclass, text, boolean) FROM PUBLIC;
