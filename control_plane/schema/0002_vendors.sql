-- Whom the gateway calls: vendors with their sealed keys, aliases, and the key to seal to.

-- The gateways' public keys. Vendor keys are sealed to the newest; the private keys are elsewhere.
CREATE TABLE vault_keys (
    public_key text PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE vendors (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    org_id uuid REFERENCES orgs (id),  -- null: the operator's, for every org
    name text NOT NULL,
    kind text NOT NULL,
    base_url text NOT NULL,
    is_private boolean NOT NULL DEFAULT false,  -- http and private addresses are allowed
    is_default boolean NOT NULL DEFAULT false,  -- for its wire format
    models text[],  -- globs over the models it takes; null: says nothing
    usage_unasked boolean NOT NULL DEFAULT false,  -- streams report usage without being asked
    account_headers boolean NOT NULL DEFAULT false,  -- clients may select an account of the vendor's
    is_simulator boolean NOT NULL DEFAULT false,
    sealed_key bytea NOT NULL,
    key_version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    removed_at timestamptz
);
CREATE UNIQUE INDEX vendors_by_name ON vendors (name) WHERE removed_at IS NULL AND org_id IS NULL;

CREATE TABLE aliases (
    name text PRIMARY KEY,
    vendor_name text NOT NULL,
    model text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

GRANT SELECT ON vendors, aliases, vault_keys TO kaixu_gateway;
