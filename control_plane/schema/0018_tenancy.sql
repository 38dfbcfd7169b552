-- What is asked before it is known which org it is about: by the operator, and by who was invited.

-- Every org, in order of its name, for who runs this installation; for others there is none.
CREATE FUNCTION operator_orgs(search text, after_name text, after_id uuid, rows_max integer)
RETURNS TABLE (
    id uuid, name text, created_at timestamptz, suspended_at timestamptz, members bigint,
    workspaces bigint
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT
        o.id, o.name, o.created_at, o.suspended_at,
        (
            SELECT count(*) FROM users AS u
            WHERE u.org_id = o.id AND u.account_id IS NOT NULL AND u.removed_at IS NULL
        ),
        (SELECT count(*) FROM workspaces AS w WHERE w.org_id = o.id AND w.archived_at IS NULL)
    FROM orgs AS o
    WHERE EXISTS (
            SELECT FROM accounts AS a
            WHERE a.id = app_account() AND a.is_operator AND a.disabled_at IS NULL
        )
        AND o.deleted_at IS NULL
        AND (search IS NULL OR strpos(lower(o.name), lower(search)) > 0)
        AND (after_id IS NULL OR (o.name COLLATE "C", o.id) > (after_name, after_id))
    ORDER BY o.name COLLATE "C", o.id
    LIMIT rows_max;
$$;

-- The org of an invitation that is open, for who has its token.
CREATE FUNCTION org_of_invitation(token_digest bytea) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT i.org_id FROM invitations AS i JOIN orgs AS o ON o.id = i.org_id
    WHERE i.digest = token_digest AND i.accepted_at IS NULL AND i.withdrawn_at IS NULL
        AND i.expires_at > clock_timestamp()
        AND o.suspended_at IS NULL AND o.deleted_at IS NULL;
$$;

REVOKE ALL ON FUNCTION
    operator_orgs(text, text, uuid, integer), org_of_invitation(bytea)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    operator_orgs(text, text, uuid, integer), org_of_invitation(bytea)
TO kaixu_control;
