-- Who changed what.

-- name: append
-- Append an entry to the chain of its org, or of the installation.
SELECT audit_append(
    $1::uuid, $2, $3::uuid, $4, $5, $6, $7, $8, $9, $10::text::jsonb, $11::text::jsonb
)
