import asyncio
import contextlib
from datetime import timedelta

import asyncpg
import pytest

from control_plane.audit_verification import verify
from control_plane.errors import DatabaseUnreachable
from control_plane.sweeper import sweep, sweep_for_ever
from control_plane.web.database import open_control_database
from gateway.log import Log
from tests.control_plane.conftest import People
from tests.control_plane.test_audit_log import filled


async def test_what_is_old_goes_and_what_is_not_stays(
    control_url: str, owner: asyncpg.Connection, people: People
) -> None:
    person = await people.person()
    await people.session(person.account_id, person.email)
    await owner.execute(
        """
        UPDATE sessions SET expires_at = now() - interval '91 days' WHERE id = $1
        """,
        person.session_id,
    )
    await owner.execute(
        """
        INSERT INTO mailed_links (digest, purpose, account_id, email_key, expires_at)
        SELECT
            sha256(convert_to(n::text, 'UTF8')), 'verify_email', $1, '', now() - n * interval '5 d'
        FROM generate_series(1, 2) AS n
        """,
        person.account_id,
    )
    await owner.execute(
        """
        INSERT INTO idempotency_keys (account_id, route, key, request_digest, created_at)
        SELECT $1, '', n::text, sha256('x'), now() - n * interval '20 hours'
        FROM generate_series(1, 2) AS n
        """,
        person.account_id,
    )
    await owner.execute(
        "INSERT INTO throttle VALUES ('old', '{}', now() - interval '1 s'), ('new', '{}', now() + "
        "interval '1 h')"
    )
    await owner.execute(
        """
        INSERT INTO refusals (at, worker_id, reason)
        SELECT now() - n * interval '20 days', gen_random_uuid(), 'x'
        FROM generate_series(1, 2) AS n
        """
    )
    await owner.execute(
        """
        INSERT INTO signups (
            id, digest, email, email_key, name, org_name, password_hash, password_key, expires_at
        )
        SELECT
            gen_random_uuid(), sha256(convert_to(n::text, 'UTF8')), 'a@b', 'a@b', '', 'acme', '',
            '', now() + n * interval '1 h'
        FROM unnest(ARRAY[-1, 1]) AS n
        """
    )
    async with open_control_database(control_url) as database:
        assert await sweep(database) == {
            "refusals": 1, "throttle": 1, "idempotency_keys": 1, "sessions": 1, "mailed_links": 1,
            "signups": 1, "audit_log": 0,
        }  # fmt: skip
        again = await sweep(database)
        assert again is not None
        assert not any(again.values())


async def test_a_chain_whose_beginning_was_forgotten_still_verifies(
    control_url: str, owner: asyncpg.Connection, people: People
) -> None:
    org = await people.org()
    await filled(owner, org, 20)
    await filled(owner, None, 3)
    await owner.execute("UPDATE retention SET audit_days = 90")
    async with open_control_database(control_url) as database:
        found = await sweep(database)
        assert found is not None
        assert found["audit_log"] == 0
        await _age(owner, timedelta(days=100))
        await filled(owner, org, 5)
        found = await sweep(database)
        assert found is not None
        assert found["audit_log"] == 23
        verified = await verify(owner)
        assert verified["ok"], verified
        assert [chain["entries"] for chain in verified["chains"]] == [1, 6]
        await owner.execute("DELETE FROM audit_log WHERE action = 'audit.prune'")
        assert not (await verify(owner))["ok"]


async def _age(owner: asyncpg.Connection, by: timedelta) -> None:
    """Write all chains anew, as if they had been written so long ago."""
    async with owner.transaction():
        await owner.execute("UPDATE audit_log SET at = at - $1::interval", by)
        heads = await owner.fetch("SELECT org_id, last FROM audit_heads")
        for head in heads:
            before = b""
            for ordinal in range(1, head["last"] + 1):
                before = await owner.fetchval(
                    """
                    UPDATE audit_log AS l
                    SET hash = sha256($3::bytea || convert_to(audit_text(l), 'UTF8'))
                    WHERE l.org_id IS NOT DISTINCT FROM $1 AND l.ordinal = $2 RETURNING hash
                    """,
                    head["org_id"], ordinal, before,
                )  # fmt: skip
            await owner.execute(
                "UPDATE audit_heads SET last_hash = $2 WHERE org_id IS NOT DISTINCT FROM $1",
                head["org_id"], before,
            )  # fmt: skip


async def test_one_node_sweeps_at_a_time(control_url: str) -> None:
    async with open_control_database(control_url) as one, open_control_database(control_url) as two:
        async with one.transaction() as connection:
            await connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended('kaixu sweeper', 0))"
            )
            assert await sweep(two) is None
        assert await sweep(two) is not None


async def test_a_part_that_takes_too_long_keeps_no_other_from_being_swept(
    control_url: str, owner: asyncpg.Connection, people: People
) -> None:
    await filled(owner, await people.org(), 1)
    await owner.execute("UPDATE retention SET audit_days = 90")
    await owner.execute("INSERT INTO throttle VALUES ('old', '{}', now() - interval '1 s')")
    async with open_control_database(control_url) as database, owner.transaction():
        await owner.execute("SELECT FROM audit_heads FOR UPDATE")
        with pytest.raises(DatabaseUnreachable):
            await sweep(database)
        assert not await owner.fetchval("SELECT EXISTS (SELECT FROM throttle WHERE key = 'old')")


async def test_a_database_that_is_away_is_swept_when_it_is_back(control_url: str) -> None:
    lines: list[bytes] = []
    pauses: list[float] = []

    def write(line: bytes) -> bool:
        lines.append(line)
        return True

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    async with open_control_database(control_url) as database:
        await database.pool.close()
        with contextlib.suppress(asyncio.CancelledError):
            await sweep_for_ever(
                database, Log(write, now=lambda: 0.0), sleep=sleep, jitter=lambda: 0.5
            )
    assert pauses == [60.0] * 3
    assert len(lines) == 2
    assert DatabaseUnreachable.__name__.encode() in lines[0]
