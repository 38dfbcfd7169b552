-- What the login of a process may do in the database.

-- name: stands_above
-- Whether it is, or can become, a role that row-level policies don't bind: the tables' owner too.
SELECT EXISTS (
    SELECT FROM pg_roles AS r
    WHERE pg_has_role(r.oid, 'MEMBER') AND (
        r.rolsuper OR r.rolbypassrls
        OR r.oid = (SELECT c.relowner FROM pg_class AS c WHERE c.oid = to_regclass('public.orgs'))
    )
)
