-- Tokens, as the gateway looks them up.

-- name: find_caller
-- The token with this digest, the head of the same snapshot, first blocks; always at least a row.
SELECT
    head.last AS head,
    token.id::text AS token_id,
    token.parent_id::text AS parent_id,
    token.org_id::text AS org_id,
    token.workspace_id::text AS workspace_id,
    token.user_id::text AS user_id,
    token.scopes,
    token.models,
    token.parent_models,
    token.vendors,
    token.parent_vendors,
    token.addresses,
    token.parent_addresses,
    extract(epoch FROM standing.expires_at)::float8 AS expires_at,
    standing.why,
    limits.kinds AS limit_kinds,
    limits.subject_ids::text[] AS limit_ids,
    permits.kinds AS permit_kinds,
    permits.subject_ids::text[] AS permit_ids,
    permits.calls AS permit_calls,
    permits.windows AS permit_windows,
    block.*
FROM change_head AS head
-- A secret that was replaced opens its token for a while; then it is as if the token had expired.
LEFT JOIN LATERAL (
    SELECT t.id, t.expires_at AS until FROM tokens AS t WHERE t.digest = $1::bytea
    UNION ALL
    SELECT r.token_id, r.until FROM retired_digests AS r WHERE r.digest = $1::bytea
    LIMIT 1
) AS secret ON true
LEFT JOIN token_standings AS token ON token.id = secret.id
CROSS JOIN LATERAL (
    SELECT
        coalesce(
            token.ended,
            CASE
                WHEN least(token.expires_at, secret.until) <= clock_timestamp() THEN 'expired'
            END
        ) AS why,
        least(token.expires_at, secret.until) AS expires_at
) AS standing
CROSS JOIN LATERAL (
    SELECT
        coalesce(array_agg(l.kind ORDER BY l.kind COLLATE "C", l.subject_id), '{}') AS kinds,
        coalesce(
            array_agg(l.subject_id ORDER BY l.kind COLLATE "C", l.subject_id), '{}'
        ) AS subject_ids
    FROM (
        VALUES
            ('token', token.id), ('token', token.parent_id), ('user', token.user_id),
            ('workspace', token.workspace_id), ('org', token.org_id)
    ) AS subject (kind, id)
    JOIN call_limits AS l ON l.kind = subject.kind AND l.subject_id = subject.id
) AS limits
CROSS JOIN LATERAL (
    SELECT
        coalesce(array_agg(l.kind), '{}') AS kinds,
        coalesce(array_agg(l.subject_id), '{}') AS subject_ids,
        coalesce(array_agg(l.calls), '{}') AS calls,
        coalesce(array_agg(l.window_seconds), '{}') AS windows  -- null: of open calls
    FROM (
        VALUES ('token', token.id), ('token', token.parent_id), ('org', token.org_id)
    ) AS subject (kind, id)
    JOIN (
        SELECT r.kind, r.subject_id, r.calls, r.window_seconds FROM rate_limits AS r
        UNION ALL
        SELECT c.kind, c.subject_id, c.calls, NULL FROM concurrency_limits AS c
    ) AS l ON l.kind = subject.kind AND l.subject_id = subject.id
) AS permits
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN standing.why IS NULL AND cardinality(limits.kinds) <= cardinality($3::uuid[])
            THEN cardinality(limits.kinds)
        ELSE 0
    END AS count
) AS blocks
-- A function, so its own statements see what has been committed since; the rest of this row is of
-- one snapshot. Without limits its arrays are empty: it grants nothing and writes nothing.
LEFT JOIN LATERAL grant_blocks(
    worker_id => $2::uuid,
    block_ids => ($3::uuid[])[:blocks.count],
    kinds => limits.kinds[:blocks.count],
    subject_ids => limits.subject_ids[:blocks.count],
    wants => array_fill($4::bigint, ARRAY[blocks.count])
) AS block ON true

-- name: find_ended
-- Which of these tokens have ended, or do not exist.
SELECT asked.id::text AS token_id
FROM unnest($1::uuid[]) AS asked (id)
LEFT JOIN token_standings AS token ON token.id = asked.id
WHERE token.id IS NULL OR token.ended IS NOT NULL
