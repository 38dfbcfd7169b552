-- Whether this is the ledger that it was. A standby that lagged behind, or a restored copy, takes
-- over without the newest rows, and may number others like them: so a gateway knows its place by a
-- row, and ships what it keeps again where that row is gone.

-- No place is a place in every ledger.
CREATE FUNCTION ledger_follows(known_ordinal bigint, known_id uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT known_id IS NULL OR EXISTS (
        SELECT FROM usage_events WHERE id = known_id AND ordinal = known_ordinal
    );
$$;

-- As `ledger_append`. `follows`: the ledger has the place that the gateway knew; `last_id`: the row
-- by which it knows its place from now on, null while there is none.
CREATE FUNCTION ledger_append_after(
    known_ordinal bigint, known_id uuid, new_rows json,
    OUT follows boolean, OUT last_ordinal bigint, OUT last_id uuid, OUT inserted bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    follows := ledger_follows(known_ordinal, known_id);
    SELECT a.last_ordinal, a.inserted INTO last_ordinal, inserted FROM ledger_append(new_rows) AS a;
    SELECT e.id INTO last_id FROM usage_events AS e WHERE e.ordinal = last_ordinal LIMIT 1;
END
$$;

REVOKE ALL ON FUNCTION ledger_follows(bigint, uuid), ledger_append_after(bigint, uuid, json)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_follows(bigint, uuid), ledger_append_after(bigint, uuid, json)
    TO kaixu_gateway;
