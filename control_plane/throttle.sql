-- How often what may be asked of the control plane.

-- name: take
-- Admit one request under all of these keys, or say how many seconds it has to wait.
SELECT throttle_take($1::text[], $2::integer[], $3::interval[])

-- name: prune
-- Remove some of the rows that say nothing any more.
SELECT prune_throttle()

-- name: give_back
-- Take back the newest admission under each of these keys.
SELECT throttle_give_back($1::text[])
