import asyncio

import asyncpg

from gateway.reseal import reseal
from gateway.vendors.seal import keygen
from gateway.vendors.vault import Vault
from tests.conftest import Database

NEWEST = "SELECT public_key FROM vault_keys ORDER BY created_at DESC LIMIT 1"
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'vendors'::regclass"


async def test_a_key_that_comes_back_is_the_one_to_seal_to_again(owner: asyncpg.Connection) -> None:
    first, second = keygen(), keygen()
    vault = Vault([first.private, second.private])
    for pair in (first, second, first):
        await reseal(owner, vault, public=pair.public)
        assert await owner.fetchval(NEWEST) == pair.public


async def test_a_vendor_that_is_just_being_added_is_waited_for(
    owner: asyncpg.Connection, database: Database
) -> None:
    """It may be sealed to the key before, which nothing may be sealed to afterwards."""
    pair = keygen()
    configurer = await asyncpg.connect(database.owner_url)
    held = configurer.transaction()
    await held.start()
    await configurer.execute("LOCK TABLE vendors, aliases IN SHARE ROW EXCLUSIVE MODE")
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        sealing = tasks.create_task(reseal(owner, Vault([pair.private]), public=pair.public))
        while not await configurer.fetchval(WAITING):  # noqa: ASYNC110 - the database's wait
            await asyncio.sleep(0.01)
        await configurer.execute(
            "INSERT INTO vendors (name, kind, base_url, sealed_key) "
            "VALUES ('new', 'openai', 'https://api.example.com', 'sealed to nobody')"
        )
        await held.commit()
        await configurer.close()
    assert [one["name"] for one in sealing.result()["failed"]] == ["new"]
