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
SELECT isolate('retired_digests', 'org_id = app_org()', by_gateway => true);

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

-- Every token of every org, one change for each org; those included that are being made just now.
CREATE FUNCTION revoke_every_token() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    ended bigint;
BEGIN
    -- Not a weaker one: who holds a token's row, and is about to change it, would wait for us.
    LOCK TABLE tokens IN EXCLUSIVE MODE;
    PERFORM set_config('kaixu.revocation_scope', 'org', true);
    UPDATE tokens SET revoked_at = clock_timestamp() WHERE revoked_at IS NULL;
    GET DIAGNOSTICS ended = ROW_COUNT;
    PERFORM set_config('kaixu.revocation_scope', '', true);
    RETURN ended;
END
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

-- A token with its own limits, as the members of its org may see it. One that a vendor is tested
-- with is nobody's: who could change it would keep it, and with it a vendor that is disabled.
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
) AS old ON true
WHERE coalesce(t.scopes[2], '') NOT LIKE 'vendor\_test:%';
GRANT SELECT ON token_details TO kaixu_control;

-- Alerts: a limit that is nearly spent, a token that ends soon, a vendor that refuses our key; and
-- who is told of them, by mail or at a URL.
CREATE TABLE alert_subscriptions (
    id uuid PRIMARY KEY,
    org_id uuid NOT NULL REFERENCES orgs (id),
    channel text NOT NULL CHECK (channel IN ('email', 'webhook')),
    user_id uuid,  -- the member who is written to
    url text,  -- where alerts are sent to
    secret_sealed bytea,  -- what they are signed with
    kinds text[] CHECK (cardinality(kinds) > 0),  -- null: all
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (org_id, user_id) REFERENCES users (org_id, id),
    CHECK ((channel = 'email') = (user_id IS NOT NULL)),
    CHECK ((channel = 'webhook') = (url IS NOT NULL AND secret_sealed IS NOT NULL))
);
CREATE INDEX alert_subscriptions_by_org ON alert_subscriptions (org_id, id);

-- One row for each thing, period and level: that is what makes an alert come once. Level 1 comes in
-- time (80 % of a limit, 7 days), level 2 late (100 %, 1 day).
CREATE TABLE alerts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    org_id uuid NOT NULL REFERENCES orgs (id),
    kind text NOT NULL CHECK (kind IN ('limit', 'token_expiring', 'vendor_key')),
    subject_kind text NOT NULL,  -- token, user, workspace, org, vendor
    subject text NOT NULL,  -- its id, or a vendor's name
    period text NOT NULL,  -- a month, the end of a token, a day
    level smallint NOT NULL CHECK (level IN (1, 2)),
    detail jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (org_id, kind, subject_kind, subject, period, level)
);
CREATE INDEX alerts_by_org ON alerts (org_id, at, id);
CREATE INDEX alerts_by_time ON alerts (at);

CREATE TABLE alert_deliveries (
    alert_id uuid NOT NULL REFERENCES alerts (id) ON DELETE CASCADE,
    subscription_id uuid NOT NULL REFERENCES alert_subscriptions (id) ON DELETE CASCADE,
    org_id uuid NOT NULL REFERENCES orgs (id),
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sent', 'failed')),
    tries integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    problem text NOT NULL DEFAULT '',
    PRIMARY KEY (alert_id, subscription_id)
);
CREATE INDEX alert_deliveries_waiting ON alert_deliveries (org_id, next_at) WHERE state = 'waiting';
CREATE INDEX alert_deliveries_by_subscription ON alert_deliveries (subscription_id);

SELECT isolate(name::regclass, 'org_id = app_org()')
FROM unnest(ARRAY['alert_subscriptions', 'alerts', 'alert_deliveries']) AS name;
GRANT SELECT, INSERT, DELETE ON alert_subscriptions TO kaixu_control;
GRANT SELECT ON alerts, alert_deliveries TO kaixu_control;

CREATE INDEX tokens_by_expiry ON tokens (expires_at) WHERE revoked_at IS NULL AND parent_id IS NULL;

-- What there is to be told of now. Of a limit counts what is known to be used: blocks that workers
-- hold may come back.
CREATE VIEW alerts_due AS
SELECT
    l.org_id, 'limit' AS kind, l.kind AS subject_kind, l.subject_id::text AS subject,
    to_char(a.month, 'YYYY-MM') AS period, level.level,
    jsonb_build_object(
        'limit', l.calls_a_month, 'used', used.calls, 'percent', level.percent,
        'name', CASE l.kind
            WHEN 'token' THEN (SELECT name FROM tokens WHERE id = l.subject_id)
            WHEN 'user' THEN (SELECT name FROM users WHERE id = l.subject_id)
            WHEN 'workspace' THEN (SELECT name FROM workspaces WHERE id = l.subject_id)
            ELSE (SELECT name FROM orgs WHERE id = l.subject_id)
        END
    ) AS detail
FROM call_limits AS l
JOIN allowances AS a ON a.kind = l.kind AND a.subject_id = l.subject_id
    AND a.unit = 'calls' AND a.month = allowance_month() AND a.taken * 5 >= l.calls_a_month * 4
CROSS JOIN LATERAL (
    SELECT a.taken - coalesce(sum(b.amount), 0) AS calls
    FROM blocks AS b
    WHERE b.kind = l.kind AND b.subject_id = l.subject_id AND b.unit = 'calls'
        AND b.month = a.month AND b.settled_at IS NULL
) AS used
CROSS JOIN (VALUES (1, 80), (2, 100)) AS level (level, percent)
WHERE l.calls_a_month > 0 AND used.calls * 100 >= l.calls_a_month * level.percent
UNION ALL
-- A token that was made for a few days needs no warning on its first.
SELECT
    t.org_id, 'token_expiring', 'token', t.id::text, to_char(t.expires_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
    level.level,
    jsonb_build_object('name', t.name, 'hint', t.hint, 'expires_at', t.expires_at, 'days', level.days)
FROM tokens AS t
CROSS JOIN (VALUES (1, 7), (2, 1)) AS level (level, days)
WHERE t.revoked_at IS NULL AND t.parent_id IS NULL
    AND t.expires_at > clock_timestamp()
    AND t.expires_at <= clock_timestamp() + interval '7 days'
    AND t.expires_at <= clock_timestamp() + make_interval(days => level.days)
    AND t.expires_at - coalesce(t.issued_at, t.created_at) > make_interval(days => level.days + 1)
UNION ALL
-- The sample of refusals tells whose, at little cost; then the ledger tells which vendor, a moment
-- later. A key that could not even be opened is in no row of it.
SELECT DISTINCT
    r.org_id, 'vendor_key', 'vendor', coalesce(e.vendor, ''),
    to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD'), 2,
    jsonb_build_object('vendor', e.vendor)
FROM (
    SELECT DISTINCT org_id FROM refusals
    WHERE at BETWEEN clock_timestamp() - interval '5 minutes'
            AND clock_timestamp() - interval '10 seconds'
        AND reason = 'vendor_key'
        AND org_id IS NOT NULL
) AS r
LEFT JOIN LATERAL (
    SELECT DISTINCT u.vendor FROM usage_events AS u
    WHERE u.id >= uuid_v7_floor(clock_timestamp() - interval '10 minutes')
        AND u.org_id = r.org_id AND u.time > clock_timestamp() - interval '10 minutes'
        AND u.reason = 'vendor_key'
) AS e ON true;

-- Note what is due, once, and for whom; return how many alerts there are that were not there before.
-- Of one thing that is at both levels at once only the higher one is told.
CREATE FUNCTION raise_alerts() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    raised bigint;
BEGIN
    DELETE FROM alerts WHERE id IN (
        SELECT id FROM alerts WHERE at < clock_timestamp() - interval '90 days'
        ORDER BY at LIMIT 10000
    );
    WITH new AS (
        INSERT INTO alerts (org_id, kind, subject_kind, subject, period, level, detail)
        SELECT d.org_id, d.kind, d.subject_kind, d.subject, d.period, d.level, d.detail
        FROM alerts_due AS d
        ON CONFLICT DO NOTHING
        RETURNING *
    ),
    told AS (
        INSERT INTO alert_deliveries (alert_id, subscription_id, org_id)
        SELECT new.id, s.id, new.org_id
        FROM new
        JOIN alert_subscriptions AS s ON s.org_id = new.org_id
            AND (s.kinds IS NULL OR new.kind = ANY (s.kinds))
        WHERE NOT EXISTS (
            SELECT FROM new AS higher
            WHERE (higher.org_id, higher.kind, higher.subject_kind, higher.subject, higher.period)
                = (new.org_id, new.kind, new.subject_kind, new.subject, new.period)
                AND higher.level > new.level
        )
    )
    SELECT count(*) INTO raised FROM new;
    RETURN raised;
END
$$;

-- Take what is to be sent now; who takes it has until `next_at` to say what came of it. Orgs take
-- turns: one whose URLs are slow, or that has much to be told of, keeps no other waiting.
CREATE FUNCTION take_alert_deliveries(most integer, most_of_an_org integer) RETURNS TABLE (
    alert_id uuid, subscription_id uuid, org_id uuid, tries integer, kind text, subject_kind text,
    subject text, period text, level smallint, detail jsonb, at timestamptz, channel text,
    url text, secret_sealed bytea, email text
)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH due AS (
        SELECT d.alert_id, d.subscription_id
        FROM orgs AS o
        CROSS JOIN LATERAL (
            SELECT
                w.alert_id, w.subscription_id, w.next_at,
                row_number() OVER (ORDER BY w.next_at) AS turn
            FROM alert_deliveries AS w
            WHERE w.org_id = o.id AND w.state = 'waiting' AND w.next_at <= clock_timestamp()
            ORDER BY w.next_at LIMIT most_of_an_org
        ) AS d
        ORDER BY d.turn, d.next_at LIMIT most
    ),
    taken AS (
        UPDATE alert_deliveries AS d
        SET tries = d.tries + 1,
            next_at = clock_timestamp() + interval '5 minutes' * 2 ^ least(d.tries, 10)
        FROM due
        WHERE d.alert_id = due.alert_id AND d.subscription_id = due.subscription_id
            AND d.state = 'waiting' AND d.next_at <= clock_timestamp()  -- by nobody meanwhile
        RETURNING d.*
    )
    SELECT
        taken.alert_id, taken.subscription_id, taken.org_id, taken.tries, a.kind, a.subject_kind,
        a.subject, a.period, a.level, a.detail, a.at, s.channel, s.url, s.secret_sealed, p.email
    FROM taken
    JOIN alerts AS a ON a.id = taken.alert_id
    JOIN alert_subscriptions AS s ON s.id = taken.subscription_id
    LEFT JOIN users AS u ON u.id = s.user_id AND u.disabled_at IS NULL AND u.removed_at IS NULL
    LEFT JOIN accounts AS p ON p.id = u.account_id AND p.disabled_at IS NULL
        AND p.email_verified_at IS NOT NULL;
$$;

CREATE FUNCTION end_alert_delivery(of_alert uuid, to_subscription uuid, ended text, because text)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE alert_deliveries SET state = ended, problem = because
    WHERE alert_id = of_alert AND subscription_id = to_subscription;
$$;

REVOKE ALL ON FUNCTION
    raise_alerts(), take_alert_deliveries(integer, integer), end_alert_delivery(uuid, uuid, text, text)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    raise_alerts(), take_alert_deliveries(integer, integer), end_alert_delivery(uuid, uuid, text, text)
TO kaixu_control;
