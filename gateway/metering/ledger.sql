-- What the gateway does to the ledger; it may not read it.

-- name: append
-- Append a JSON array of rows, each once; gives the last ordinal and how many were new.
SELECT last_ordinal, inserted FROM ledger_append($1::json)

-- name: reject
-- Put aside a row that can't be appended, with the SQLSTATE and the message that say why.
SELECT ledger_reject($1, $2, $3)

-- name: housekeep
-- Make partitions ahead and delete old news; nulls where another gateway is at it.
SELECT partitions_made, strays, rejected FROM housekeep()
