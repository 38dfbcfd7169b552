-- Identity: sign-ups that await their verification, links, and what may be asked before anyone has
-- signed in.

-- Someone asked for an account. It is made when the link in the mail comes back together with the
-- password that was chosen: so that nobody gets into an account of an address that is not theirs.
CREATE TABLE signups (
    id uuid PRIMARY KEY,
    digest bytea NOT NULL UNIQUE CHECK (length(digest) = 32),  -- of the link's token
    email text NOT NULL CHECK (email <> '' AND length(email) <= 254),
    email_key text NOT NULL,
    name text NOT NULL CHECK (length(name) <= 200),
    org_name text NOT NULL CHECK (org_name <> '' AND length(org_name) <= 200),
    password_hash text NOT NULL,
    password_key text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX signups_by_email ON signups (email_key, created_at);
CREATE INDEX signups_by_expiry ON signups (expires_at);

-- Which control key's pepper is in the hash; null: there is no hash.
ALTER TABLE accounts ADD COLUMN password_key text;

-- A link may confirm a new address as well; `email` is that address.
ALTER TABLE mailed_links DROP CONSTRAINT mailed_links_purpose_check;
ALTER TABLE mailed_links
    ADD COLUMN email text CHECK (email <> '' AND length(email) <= 254),
    ADD CONSTRAINT mailed_links_purpose_check
        CHECK (purpose IN ('verify_email', 'reset_password', 'change_email'));
CREATE INDEX mailed_links_by_expiry ON mailed_links (expires_at);

-- What addresses an account came from lately is asked of ended sessions too.
CREATE INDEX sessions_by_account_and_time ON sessions (account_id, created_at);

-- The account that an address belongs to, as far as signing in needs it: asked before anyone is
-- known, and so of any account.
CREATE FUNCTION sign_in_account(key text)
RETURNS TABLE (
    id uuid, email text, name text, is_usable boolean, password_hash text, password_key text,
    has_totp boolean, addresses text[]
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT
        a.id, a.email, a.name, a.disabled_at IS NULL AND a.email_verified_at IS NOT NULL,
        a.password_hash, a.password_key, a.totp_enabled_at IS NOT NULL,
        ARRAY(
            SELECT s.address FROM sessions AS s
            WHERE s.account_id = a.id AND s.created_at > clock_timestamp() - interval '30 days'
            ORDER BY s.created_at DESC LIMIT 20
        )
    FROM accounts AS a WHERE a.email_key = key;
$$;

-- Whom a link that was mailed is for, if it is good still. It is not once the account has another
-- address than the one it had.
CREATE FUNCTION good_link(link_digest bytea, wanted text)
RETURNS TABLE (account_id uuid, account_email text, account_name text, email text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT a.id, a.email, a.name, l.email
    FROM mailed_links AS l JOIN accounts AS a ON a.id = l.account_id
    WHERE l.digest = link_digest AND l.purpose = wanted AND l.used_at IS NULL
        AND l.expires_at > clock_timestamp() AND l.email_key = a.email_key
        AND a.disabled_at IS NULL;
$$;

-- Take back the newest admission under each of these keys: what was admitted did no harm.
CREATE FUNCTION throttle_give_back(keys text[]) RETURNS void
LANGUAGE sql SET search_path = public, pg_temp AS $$
    WITH held AS (
        SELECT key FROM throttle WHERE key = ANY (keys) ORDER BY key COLLATE "C" FOR UPDATE
    )
    UPDATE throttle AS t SET admitted = trim_array(t.admitted, 1)
    FROM held WHERE t.key = held.key AND cardinality(t.admitted) > 0;
$$;

REVOKE ALL ON FUNCTION
    sign_in_account(text), good_link(bytea, text), throttle_give_back(text[])
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    sign_in_account(text), good_link(bytea, text), throttle_give_back(text[])
TO kaixu_control;
GRANT SELECT, INSERT, UPDATE, DELETE ON signups TO kaixu_control;
GRANT DELETE ON mailed_links, sessions TO kaixu_control;
