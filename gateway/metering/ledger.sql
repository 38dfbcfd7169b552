-- What the gateway does to the ledger; it may not read it.

-- name: append
-- Append a JSON array of rows, each once; gives how many were new, the place of the last row then,
-- and whether the place known before, ($2, $3), still is one.
SELECT follows, last_ordinal, last_id::text AS last_id, inserted
FROM ledger_append_after($2::bigint, $3::uuid, $1::json)

-- name: reject
-- Put aside a row that can't be appended, with the SQLSTATE and the message that say why.
SELECT ledger_reject($1, $2, $3)

-- name: housekeep
-- Make partitions ahead and delete old news; nulls where another gateway is at it.
SELECT partitions_made, strays, rejected FROM housekeep()
