-- Testing a vendor by a call through the gateway.

-- name: begin
-- Make the token that it is called with; no row: there is no such vendor, or nobody to call for.
SELECT vendor_id::text, vendor_kind FROM begin_vendor_test($1, $2, $3, $4)

-- name: end
-- Forget the token.
SELECT end_vendor_test($1)
