-- Whom a transaction of the control plane belongs to.

-- name: belong
-- Set the org and the account, until the transaction ends; an empty text: none.
SELECT set_config('app.org_id', $1, true), set_config('app.account_id', $2, true)
