-- What changed, in commit order; and the workers that must hear of it.

-- One counter, taken last in a transaction: its row lock is held to the commit, so that ordinals
-- appear in order and nobody reads past a late commit. `last_id` is the id of the change that has
-- this ordinal: a database that was restored or failed over gives old ordinals to other changes,
-- so who follows the log knows its place by both.
CREATE TABLE change_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    last bigint NOT NULL,
    last_id uuid NOT NULL
);
INSERT INTO change_head (last, last_id) VALUES (0, gen_random_uuid());

-- One row for each transaction and subject. `effect`: 'dead' ends the subject's open streams,
-- 'changed' only what is remembered of it, 'limit' also calls its blocks back. Kind 'vendors'
-- stands for all vendors and aliases.
CREATE TABLE change_log (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    ordinal bigint UNIQUE,  -- null only until its own transaction ends
    previous_id uuid,  -- likewise; the change before, which may have been pruned
    at timestamptz,  -- likewise
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    kind text NOT NULL CHECK (kind IN ('token', 'user', 'workspace', 'org', 'vendors')),
    subject_id uuid CHECK ((kind = 'vendors') = (subject_id IS NULL)),
    effect text NOT NULL CHECK (effect IN ('dead', 'changed', 'limit'))
);
-- Only while a transaction is at it: a dump that is restored brings transaction numbers along that
-- its new server is going to use again.
CREATE UNIQUE INDEX change_log_once ON change_log (xact, kind, subject_id, effect)
NULLS NOT DISTINCT WHERE ordinal IS NULL;
CREATE INDEX change_log_by_time ON change_log (at);
CREATE INDEX change_log_by_subject ON change_log (subject_id, ordinal);  -- for receipts

-- Numbers all changes of the transaction when the first of them asks. Needs READ COMMITTED: in a
-- stricter transaction the counter is a serialization failure where another one committed first.
CREATE FUNCTION number_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    ids uuid[];
    head change_head;
BEGIN
    IF EXISTS (SELECT FROM change_log WHERE id = NEW.id AND ordinal IS NOT NULL) THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(id ORDER BY id) INTO ids
    FROM change_log WHERE xact = pg_current_xact_id() AND ordinal IS NULL;
    SELECT * INTO head FROM change_head FOR UPDATE;
    UPDATE change_log
    SET ordinal = head.last + mine.place,
        previous_id = coalesce(ids[mine.place - 1], head.last_id),
        at = clock_timestamp()
    FROM unnest(ids) WITH ORDINALITY AS mine (id, place)
    WHERE change_log.id = mine.id;
    UPDATE change_head SET last = last + cardinality(ids), last_id = ids[cardinality(ids)];
    PERFORM pg_notify('kaixu_changes', '');
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER number_change AFTER INSERT ON change_log
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.ordinal IS NULL)
EXECUTE FUNCTION number_change();

-- Only the triggers below call it, as the owner, whoever made the change.
CREATE FUNCTION log_change(changed_kind text, changed_id uuid, with_effect text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    INSERT INTO change_log (kind, subject_id, effect)
    VALUES (changed_kind, changed_id, with_effect)
    ON CONFLICT (xact, kind, subject_id, effect) WHERE ordinal IS NULL DO NOTHING;
$$;

-- A token that ends is named, because others live on. Where one statement changes many tokens of
-- an org in another way, the org stands for them. Other columns may change without a word.
CREATE FUNCTION tokens_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    tokens_named_max CONSTANT integer := 100;
BEGIN
    WITH touched AS (
        SELECT
            after.id,
            after.org_id,
            before.revoked_at IS NULL AND after.revoked_at IS NOT NULL AS is_dead,
            before.org_id <> after.org_id
                OR count(*) OVER (PARTITION BY after.org_id) <= tokens_named_max AS is_named
        FROM old_tokens AS before JOIN new_tokens AS after ON after.id = before.id
        WHERE (
            before.digest, before.org_id, before.workspace_id, before.user_id, before.parent_id,
            before.scopes, before.models, before.expires_at, before.revoked_at
        ) IS DISTINCT FROM (
            after.digest, after.org_id, after.workspace_id, after.user_id, after.parent_id,
            after.scopes, after.models, after.expires_at, after.revoked_at
        )
    ),
    change AS (
        SELECT DISTINCT
            CASE WHEN is_dead OR is_named THEN 'token' ELSE 'org' END AS kind,
            CASE WHEN is_dead OR is_named THEN id ELSE org_id END AS subject_id,
            CASE WHEN is_dead THEN 'dead' ELSE 'changed' END AS effect
        FROM touched
    )
    INSERT INTO change_log (kind, subject_id, effect) SELECT kind, subject_id, effect FROM change
    ON CONFLICT (xact, kind, subject_id, effect) WHERE ordinal IS NULL DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER tokens_updated AFTER UPDATE ON tokens
REFERENCING OLD TABLE AS old_tokens NEW TABLE AS new_tokens
FOR EACH STATEMENT EXECUTE FUNCTION tokens_updated();

CREATE FUNCTION token_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM log_change('token', OLD.id, 'dead');
    RETURN NULL;
END
$$;
CREATE TRIGGER token_deleted AFTER DELETE ON tokens
FOR EACH ROW WHEN (OLD.revoked_at IS NULL) EXECUTE FUNCTION token_deleted();

CREATE FUNCTION user_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM log_change(
        'user', NEW.id, CASE WHEN NEW.disabled_at IS NOT NULL THEN 'dead' ELSE 'changed' END
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER user_changed AFTER UPDATE OF disabled_at ON users
FOR EACH ROW WHEN (OLD.disabled_at IS DISTINCT FROM NEW.disabled_at)
EXECUTE FUNCTION user_changed();

CREATE FUNCTION workspace_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM log_change(
        'workspace', NEW.id, CASE WHEN NEW.archived_at IS NOT NULL THEN 'dead' ELSE 'changed' END
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER workspace_changed AFTER UPDATE OF archived_at ON workspaces
FOR EACH ROW WHEN (OLD.archived_at IS DISTINCT FROM NEW.archived_at)
EXECUTE FUNCTION workspace_changed();

CREATE FUNCTION org_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM log_change(
        'org', NEW.id, CASE WHEN NEW.suspended_at IS NOT NULL THEN 'dead' ELSE 'changed' END
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER org_changed AFTER UPDATE OF suspended_at ON orgs
FOR EACH ROW WHEN (OLD.suspended_at IS DISTINCT FROM NEW.suspended_at)
EXECUTE FUNCTION org_changed();

CREATE FUNCTION limit_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM log_change(OLD.kind, OLD.subject_id, 'limit');
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM log_change(NEW.kind, NEW.subject_id, 'limit');
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER limit_inserted_or_deleted AFTER INSERT OR DELETE ON call_limits
FOR EACH ROW EXECUTE FUNCTION limit_changed();
CREATE TRIGGER limit_updated AFTER UPDATE OF kind, subject_id, calls_a_month ON call_limits
FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION limit_changed();

CREATE FUNCTION vendors_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM log_change('vendors', NULL, 'changed');
    RETURN NULL;
END
$$;
CREATE TRIGGER vendors_changed AFTER INSERT OR UPDATE OR DELETE ON vendors
FOR EACH STATEMENT EXECUTE FUNCTION vendors_changed();
CREATE TRIGGER aliases_changed AFTER INSERT OR UPDATE OR DELETE ON aliases
FOR EACH STATEMENT EXECUTE FUNCTION vendors_changed();

-- Nobody makes a change up, or calls what runs as the owner.
REVOKE ALL ON FUNCTION
    number_change(), log_change(text, uuid, text), tokens_updated(), token_deleted(),
    user_changed(), workspace_changed(), org_changed(), limit_changed(), vendors_changed()
FROM PUBLIC;

-- A worker is live while its heartbeats are younger than its lease and nobody has ended it. Who
-- waits for a change waits for the live workers that neither confirmed it nor applied it: one that
-- started, or started over, after the change has nothing to cut.
CREATE TABLE workers (
    id uuid PRIMARY KEY,
    machine text NOT NULL,
    pid integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL,
    lease interval NOT NULL,
    offline_stream_grace interval NOT NULL,
    applied bigint NOT NULL,  -- every change up to this ordinal holds in this worker
    unshipped_since timestamptz,  -- admission of its oldest call without a row; null: none
    ended_at timestamptz  -- it drained, or someone holds its journal's lock
);

-- "This change holds here, and so many streams were cut for it."
CREATE TABLE confirmations (
    ordinal bigint NOT NULL,
    worker_id uuid NOT NULL,
    streams_cut integer NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ordinal, worker_id)
);
CREATE INDEX confirmations_by_time ON confirmations (at);

GRANT SELECT ON change_head, change_log TO kaixu_gateway;
GRANT SELECT, INSERT, UPDATE ON workers TO kaixu_gateway;
GRANT INSERT ON confirmations TO kaixu_gateway;
