"""An org with a row in every table that keeps orgs apart, all of it named by one mark."""

import uuid
from collections.abc import Mapping
from typing import Final

import asyncpg

from gateway.auth.token import digest

# By table: a row of an org. $1 is the org's id, $2 the mark; ids are made from the mark and a word.
ROWS: Final[Mapping[str, str]] = {
    "orgs": "INSERT INTO orgs (id, name) VALUES ($1, $2)",
    "workspaces": "INSERT INTO workspaces (id, org_id, name) VALUES (of($2, 'workspace'), $1, $2)",
    "users": """
        INSERT INTO users (id, org_id, name, account_id, role)
        VALUES (of($2, 'user'), $1, $2, of($2, 'account'), 'owner'),
            (of($2, 'second user'), $1, $2, of($2, 'second account'), 'viewer')
    """,
    "workspace_members": """
        INSERT INTO workspace_members (org_id, workspace_id, user_id, role)
        VALUES ($1, of($2, 'workspace'), of($2, 'user'), 'owner'),
            ($1, of($2, 'workspace'), of($2, 'second user'), 'viewer')
    """,
    "invitations": """
        INSERT INTO invitations (
            id, org_id, digest, email, email_key, role, invited_by, expires_at
        )
        VALUES (
            of($2, 'invitation'), $1, sha256(convert_to($2, 'UTF8')), $2, $2, 'viewer',
            of($2, 'user'), now() + interval '1 day'
        )
    """,
    "tokens": """
        INSERT INTO tokens (id, digest, hint, name, org_id, workspace_id, user_id, expires_at)
        VALUES (
            of($2, 'token'), sha256(convert_to($2, 'UTF8')), $2, $2, $1, of($2, 'workspace'),
            of($2, 'user'), now() + interval '1 day'
        )
    """,
    "call_limits": "INSERT INTO call_limits VALUES ('org', $1, $1, length($2))",
    "rate_limits": "INSERT INTO rate_limits VALUES ('org', $1, $1, length($2), 60)",
    "concurrency_limits": "INSERT INTO concurrency_limits VALUES ('org', $1, $1, length($2))",
    "allowances": "INSERT INTO allowances VALUES ('org', $1, 'calls', '2026-11-01', length($2))",
    "vendors": """
        INSERT INTO vendors (id, org_id, name, kind, base_url, sealed_key)
        VALUES (of($2, 'vendor'), $1, $2, 'openai', 'https://' || $2 || '.example.com', '')
    """,
    "org_aliases": """
        INSERT INTO org_aliases (org_id, name, vendor_name, model) VALUES ($1, $2, $2, $2)
    """,
    "retired_digests": """
        INSERT INTO retired_digests (digest, token_id, org_id, until)
        VALUES (
            sha256(convert_to($2 || 'old', 'UTF8')), of($2, 'token'), $1, now() + interval '1 day'
        )
    """,
    "alert_subscriptions": """
        INSERT INTO alert_subscriptions (id, org_id, channel, user_id)
        VALUES (of($2, 'subscription'), $1, 'email', of($2, 'user'))
    """,
    "alerts": """
        INSERT INTO alerts (id, org_id, kind, subject_kind, subject, period, level, detail)
        VALUES (of($2, 'alert'), $1, 'limit', 'org', $2, '2026-11', 1, '{}')
    """,
    "alert_deliveries": """
        INSERT INTO alert_deliveries (alert_id, subscription_id, org_id)
        VALUES (of($2, 'alert'), of($2, 'subscription'), $1)
    """,
    "usage_events": """
        INSERT INTO usage_events (
            id, ordinal, call_id, time, month, org_id, workspace_id, user_id, token_id, vendor,
            endpoint, client_format, status, counted, usage_source
        )
        VALUES (
            of($2, 'event'), length($2), of($2, 'call'), '2026-11-02', '2026-11-01', $1,
            of($2, 'workspace'), of($2, 'user'), of($2, 'token'), $2, '/', 'openai', 'complete',
            true, 'none'
        )
    """,
    "usage_hourly": """
        INSERT INTO usage_hourly (
            month, hour, org_id, workspace_id, user_id, token_id, vendor, calls, counted,
            usage_partial, usage_unknown
        )
        VALUES (
            '2026-11-01', '2026-11-02', $1, of($2, 'workspace'), of($2, 'user'), of($2, 'token'),
            $2, 1, 1, 0, 0
        )
    """,
    "refusals": """
        INSERT INTO refusals (at, worker_id, reason, org_id, token_id)
        VALUES (now(), of($2, 'worker'), $2, $1, of($2, 'token'))
    """,
    "stored_objects": """
        INSERT INTO stored_objects (
            object_id, vendor_id, kind, org_id, workspace_id, user_id, token_id, call_id
        )
        VALUES (
            $2, of($2, 'vendor'), 'response', $1, of($2, 'workspace'), of($2, 'user'),
            of($2, 'token'), of($2, 'call')
        )
    """,
    "audit_heads": """
        SELECT audit_append(
            $1, 'system', NULL, '', '', '', 'test.made', 'org', $2, NULL, NULL
        )
    """,
    "audit_log": "SELECT $1::uuid, $2::text",  # the same call makes both
}

ACCOUNTS: Final = """
    INSERT INTO accounts (id, email, email_key, email_verified_at)
    VALUES (of($1, 'account'), $1 || '@example.com', $1, now()),
        (of($1, 'second account'), $1 || '2@example.com', $1 || '2', now())
"""
_OF: Final = """
    CREATE OR REPLACE FUNCTION of(mark text, word text) RETURNS uuid
    LANGUAGE sql IMMUTABLE AS $$ SELECT md5(mark || word)::uuid $$
"""


class Tenant:
    """What the rows of an org are named by."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.digest = digest(mark)

    def id(self, word: str) -> uuid.UUID:
        """Return the id of the thing that a word stands for: user, token …"""
        import hashlib  # noqa: PLC0415

        return uuid.UUID(hashlib.md5((self.mark + word).encode()).hexdigest())  # noqa: S324 - a name

    @property
    def org(self) -> uuid.UUID:
        return self.id("org")

    @property
    def account(self) -> uuid.UUID:
        return self.id("account")


async def make_accounts(owner: asyncpg.Connection, *tenants: Tenant) -> None:
    """Insert the people of orgs: they belong to themselves."""
    await owner.execute(_OF)
    for one in tenants:
        await owner.execute(ACCOUNTS, one.mark)


async def make_tenant(owner: asyncpg.Connection, tenant: Tenant) -> None:
    """Insert an org with a row in every table that this schema has."""
    await owner.execute(_OF)
    tables = set(await isolated_tables(owner))
    for table, statement in ROWS.items():
        if table in tables:
            await owner.execute(statement, tenant.org, tenant.mark)


async def isolated_tables(owner: asyncpg.Connection) -> list[str]:
    """Return the tables that are under row security and tell of one org, partitions left out."""
    rows = await owner.fetch(
        """
        SELECT relname AS name FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relforcerowsecurity AND NOT relispartition
            AND (relname IN ('orgs', 'allowances') OR EXISTS (
                SELECT FROM pg_attribute
                WHERE attrelid = pg_class.oid AND attname = 'org_id' AND NOT attisdropped
            ))
        ORDER BY relname
        """
    )
    return [row["name"] for row in rows]
