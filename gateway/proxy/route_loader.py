"""Keeps the routing table as the database has it: loaded at the start, and again when told.

A table that can't be loaded leaves the one before in place: a database that is away stops no call.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg

from gateway.log import Log
from gateway.proxy.routing import RoutingTable, Target
from gateway.sql import DATABASE_FAULTS
from gateway.vendors.registry import KINDS
from gateway.vendors.vault import OpenedVendor, Vault, load_aliases, load_vendors

LOAD_SECONDS_MAX: Final = 10.0
RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 2.0


class RouteLoader:
    """One worker's routing table."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        vault: Vault,
        *,
        allowed_hosts: frozenset[str] | None,
        log: Log,
        on_loaded: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`allowed_hosts`: the only ones that vendors may have; `on_loaded`: a new table holds."""
        self._pool = pool
        self._vault = vault
        self._allowed_hosts = allowed_hosts
        self._log = log
        self._on_loaded = on_loaded
        self._sleep = sleep
        self._jitter = jitter
        self._table = RoutingTable(())
        self._stale = asyncio.Event()
        self._stale.set()
        self.loaded = asyncio.Event()  # at least once

    def table(self) -> RoutingTable:
        """Return the table that holds now."""
        return self._table

    def reload(self) -> None:
        """Load again: something about vendors or aliases has changed."""
        self._stale.set()

    async def run(self) -> None:
        """Load whenever it is due, for ever."""
        wait = RETRY_SECONDS_MIN
        while True:
            await self._stale.wait()
            self._stale.clear()  # before the load: what changes during it is loaded again
            try:
                async with asyncio.timeout(LOAD_SECONDS_MAX):
                    await self.load()
                wait = RETRY_SECONDS_MIN
            except DATABASE_FAULTS as error:
                self._log.warning("vendors not loaded", problem=f"{type(error).__name__}: {error}")
                self._stale.set()
                await self._sleep(wait * (0.5 + self._jitter() / 2))
                wait = min(wait * 2, RETRY_SECONDS_MAX)

    async def load(self) -> None:
        """Load the table once. Raises what asyncpg raises."""
        vendors = await load_vendors(self._pool, self._vault, allowed_hosts=self._allowed_hosts)
        aliases = await load_aliases(self._pool)
        for vendor in vendors:
            if vendor.problem is not None:
                self._log.warning("vendor unusable", vendor=vendor.name, problem=vendor.problem)
        self._table = RoutingTable(
            [_target(vendor) for vendor in vendors if vendor.kind in KINDS],
            {alias.name: (alias.vendor_name, alias.model) for alias in aliases},
        )
        self.loaded.set()
        self._on_loaded()


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
