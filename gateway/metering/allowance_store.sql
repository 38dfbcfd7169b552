-- name: grant_blocks
-- Blocks of this month's allowances under these ids, as far as something is left.
SELECT block_id, kind, subject_id, month, granted, "limit", remaining, outstanding, reset_at
FROM grant_blocks($1, $2::uuid[], $3::text[], $4::uuid[], $5::bigint[], $6)

-- name: settle_blocks
-- Hand back what these blocks did not use, once.
SELECT settle_blocks($1::uuid[], $2::bigint[])
