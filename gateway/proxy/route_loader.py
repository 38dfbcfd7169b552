"""Keeps the routing table as the database has it: loaded at the start, and again when told.

A table that can't be loaded leaves the one before in place: a database that is away stops no call.
While vault keys rotate, a vendor's key may be sealed to one that is not here yet: the keys are read
again, beside the loads, and until they have it, an unchanged vendor is called with the key that was
opened before.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

import asyncpg

from gateway.auth.caller import Caller
from gateway.log import Log
from gateway.proxy.routing import RoutingTable, Target
from gateway.sql import DATABASE_FAULTS
from gateway.vendors.registry import KINDS
from gateway.vendors.vault import Alias, OpenedVendor, Vault, load_aliases, load_vendors
from gateway.vendors.vault_keys import KeysNotRead, VaultKeySource

LOAD_SECONDS_MAX: Final = 10.0
RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 2.0
VAULT_KEY_SECONDS: Final = 5.0  # between two looks for a vault key that is missing


class RouteLoader:
    """One worker's routing table."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        vault: Vault,
        *,
        keys: VaultKeySource | None = None,
        allowed_hosts: frozenset[str] | None,
        log: Log,
        on_loaded: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`keys`: where the vault's may be read again; None: nowhere.

        `allowed_hosts`: the only ones that vendors may have; `on_loaded`: a new table holds.
        """
        self._pool = pool
        self._vault = vault
        self._keys = keys or VaultKeySource()
        self._opened: Mapping[str, OpenedVendor] = {}  # by id, those that can be called
        self._lacks_vault_key = False
        self._asked = 0  # loads so far
        self._key_is_missing = asyncio.Event()  # as a load has just found
        self._allowed_hosts = allowed_hosts
        self._log = log
        self._on_loaded = on_loaded
        self._sleep = sleep
        self._jitter = jitter
        self._table = RoutingTable(())
        self._tables: Mapping[str, RoutingTable] = {}  # of orgs that have something of their own
        self._everything = RoutingTable(())
        self._stale = asyncio.Event()
        self._stale.set()
        self.loaded = asyncio.Event()  # at least once
        self.loaded_generation = 0  # every load up to this number holds

    def table(self, caller: Caller | None = None) -> RoutingTable:
        """Return the table that holds now for a caller's org; None: for who is not known yet."""
        if caller is None:
            return self._table
        if caller.tests_vendor is not None:
            return self._table_of_test(caller)
        return self._tables.get(caller.org_id, self._table)

    def everything(self) -> RoutingTable:
        """Return all targets that any org's calls may go to: not to be routed by."""
        return self._everything

    def _table_of_test(self, caller: Caller) -> RoutingTable:
        vendor = self._opened.get(caller.tests_vendor or "")
        if vendor is None or vendor.org_id not in (None, caller.org_id):
            return RoutingTable(())
        return RoutingTable((_target(vendor),))

    @property
    def is_sealed(self) -> bool:
        """Whether vendors can't be called because this gateway has no vault key at all."""
        return self._lacks_vault_key and self._vault.is_sealed

    def reload(self) -> int:
        """Load again: something about vendors or aliases has changed.

        Returns the load's number. The table has what was committed before this call once
        `loaded_generation` is no less; later calls don't put that off.
        """
        self._asked += 1
        self._stale.set()
        return self._asked

    async def run(self) -> None:
        """Load whenever it is due, and look for a vault key that is missing, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._load_when_stale())
            tasks.create_task(self._look_for_keys())

    async def _load_when_stale(self) -> None:
        wait = RETRY_SECONDS_MIN
        while True:
            await self._stale.wait()
            self._stale.clear()  # before the load: what changes during it is loaded again
            try:
                await self.load()
                wait = RETRY_SECONDS_MIN
            except DATABASE_FAULTS as error:
                self._log.warning("vendors not loaded", problem=f"{type(error).__name__}: {error}")
                self._stale.set()
                await self._sleep(wait * (0.5 + self._jitter() / 2))
                wait = min(wait * 2, RETRY_SECONDS_MAX)

    async def _look_for_keys(self) -> None:
        """Read the vault's keys while one is missing: beside the loads, which wait for no command.

        At once where a load finds that it is, then again after a while.
        """
        while self._keys.can_change:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(VAULT_KEY_SECONDS if self._lacks_vault_key else None):
                    await self._key_is_missing.wait()
            self._key_is_missing.clear()
            if self._lacks_vault_key and await self._read_keys():
                self._stale.set()

    async def load(self) -> None:
        """Load the table once; only the first waits for a vault key, as no call can go before it.

        Raises what asyncpg raises, TimeoutError.
        """
        generation = self._asked  # before the first read: what is asked for later may not be in it
        vendors, aliases = await self._fetch()
        is_first = not self.loaded.is_set()
        if is_first and _lacks_vault_key(vendors) and await self._read_keys():
            vendors, aliases = await self._fetch()
        self._publish(vendors, aliases, generation=generation)

    async def _fetch(self) -> tuple[list[OpenedVendor], list[Alias]]:
        async with asyncio.timeout(LOAD_SECONDS_MAX):
            vendors = await load_vendors(self._pool, self._vault, allowed_hosts=self._allowed_hosts)
            return vendors, await load_aliases(self._pool)

    def _publish(
        self, vendors: list[OpenedVendor], aliases: list[Alias], *, generation: int
    ) -> None:
        self._lacks_vault_key = _lacks_vault_key(vendors)
        if self._lacks_vault_key:
            self._key_is_missing.set()
        vendors = [self._kept(vendor) for vendor in vendors]
        for vendor in vendors:
            if vendor.problem is not None:
                self._log.warning("vendor unusable", vendor=vendor.name, problem=vendor.problem)
        self._opened = {vendor.id: vendor for vendor in vendors if vendor.problem is None}
        targets = [
            (one, _target(one)) for one in vendors if one.kind in KINDS and not one.is_disabled
        ]
        disabled = [one for one in vendors if one.is_disabled]
        self._tables, self._table = _tables(targets, aliases, disabled)
        self._everything = RoutingTable(target for _, target in targets)
        self.loaded_generation = generation
        self.loaded.set()
        self._on_loaded()

    async def _read_keys(self) -> bool:
        """Read the vault's keys again; return whether they are others."""
        if not self._keys.can_change:
            return False
        try:
            return self._vault.replace(await self._keys.read())
        except KeysNotRead as error:
            self._log.warning("vault keys not read", problem=str(error))
            return False

    def _kept(self, vendor: OpenedVendor) -> OpenedVendor:
        """Return a vendor as it can be called: with the key opened before, if that is still its."""
        before = self._opened.get(vendor.id)
        if not vendor.lacks_vault_key or before is None:
            return vendor
        facts = (vendor.kind, vendor.base_url, vendor.org_id, vendor.key_version)
        if facts != (before.kind, before.base_url, before.org_id, before.key_version):
            return vendor
        return replace(
            vendor,
            key=before.key,
            credential=before.credential,
            signer=before.signer,
            problem=None,
        )


def _lacks_vault_key(vendors: list[OpenedVendor]) -> bool:
    return any(vendor.lacks_vault_key for vendor in vendors)


def _tables(
    vendors: list[tuple[OpenedVendor, Target]],
    aliases: list[Alias],
    disabled: list[OpenedVendor],
) -> tuple[dict[str, RoutingTable], RoutingTable]:
    """Return the table of each org that has something of its own, and the one of all others."""
    targets: dict[str | None, list[Target]] = {None: []}
    names: dict[str | None, dict[str, tuple[str, str]]] = {None: {}}
    for vendor, target in vendors:
        targets.setdefault(vendor.org_id, []).append(target)
    off: dict[str | None, set[str]] = {}
    for vendor in disabled:
        off.setdefault(vendor.org_id, set()).add(vendor.name)
    for alias in aliases:
        names.setdefault(alias.org_id, {})[alias.name] = (alias.vendor_name, alias.model)
    shared = RoutingTable(targets.pop(None), names.pop(None), disabled=off.pop(None, ()))
    orgs = [org_id for org_id in targets.keys() | names.keys() | off.keys() if org_id is not None]
    return {
        org_id: RoutingTable(
            targets.get(org_id, ()),
            names.get(org_id),
            base=shared,
            disabled=off.get(org_id, ()),
        )
        for org_id in orgs
    }, shared


def _target(vendor: OpenedVendor) -> Target:
    return Target(
        vendor_id=vendor.id,
        name=vendor.name,
        kind=KINDS[vendor.kind],
        base=vendor.base_url,
        is_private=vendor.is_private,
        is_default=vendor.is_default,
        models=vendor.models,
        asks_usage=vendor.asks_usage,
        account_headers=vendor.account_headers,
        is_simulator=vendor.is_simulator,
        credential=vendor.credential,
        key=vendor.key,
        problem=vendor.problem,
        signer=vendor.signer,
    )
