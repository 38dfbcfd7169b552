-- name: choose_role
-- Hand over what `keep_role` works with: the role's name, and its password as a SCRAM verifier.
SELECT set_config('kaixu.role', $1, true), set_config('kaixu.verifier', $2, true)

-- name: keep_role
-- Make the login role of a machine's gateway, or give it this password.
DO $$
DECLARE
    role constant text := current_setting('kaixu.role');
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
        EXECUTE format('CREATE ROLE %I LOGIN', role);
    END IF;
    EXECUTE format('ALTER ROLE %I PASSWORD %L', role, current_setting('kaixu.verifier'));
    EXECUTE format('ALTER ROLE %I SET statement_timeout = ''5s''', role);
    EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = ''5s''', role);
    IF NOT pg_has_role(role, 'kaixu_gateway', 'MEMBER') THEN
        EXECUTE format('GRANT kaixu_gateway TO %I', role);
    END IF;
END
$$
