-- name: choose_role
-- Hand over what `keep_role` works with: the role's name, its password as a SCRAM verifier, and the
-- plane's role that it is a member of.
SELECT
    set_config('kaixu.role', $1, true), set_config('kaixu.verifier', $2, true),
    set_config('kaixu.plane', $3, true)

-- name: keep_role
-- Make a login role of a machine, or give it this password.
DO $$
DECLARE
    role constant text := current_setting('kaixu.role');
    plane constant text := current_setting('kaixu.plane');
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
        EXECUTE format('CREATE ROLE %I LOGIN', role);
    END IF;
    EXECUTE format('ALTER ROLE %I PASSWORD %L', role, current_setting('kaixu.verifier'));
    EXECUTE format('ALTER ROLE %I SET statement_timeout = ''5s''', role);
    EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = ''5s''', role);
    IF NOT pg_has_role(role, plane, 'MEMBER') THEN
        EXECUTE format('GRANT %I TO %I', plane, role);
    END IF;
END
$$
