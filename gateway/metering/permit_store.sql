-- Permits, as workers exchange them.

-- name: exchange_permits
-- Tell what was used and is held, take what is granted; one row for each kind and subject.
SELECT kind, subject, granted, outstanding, wait_seconds
FROM exchange_permits(
    worker_id => $1::uuid,
    kinds => $2::text[],
    subjects => $3::text[],
    limits => $4::integer[],
    windows => $5::float8[],
    numbers => $6::bigint[],
    helds => $7::integer[],
    spares => $8::integer[],
    wants => $9::integer[],
    uses => $10::integer[],
    use_ages => $11::float8[],
    useds => $12::integer[],
    may_recall => $13::boolean
)

-- name: prune_permits
-- Delete what is in no window any more.
SELECT prune_permits()
