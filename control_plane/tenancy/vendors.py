"""Vendors: what the gateway calls, with keys that only gateways can open.

A key is sealed here, to the gateways' public key, together with the id, kind, origin and key
version that it was entered for. Nothing in this plane can open it again.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import asyncpg

from control_plane.errors import BadArgument, NotFound, Refused
from control_plane.tenancy.aliases import list_aliases
from control_plane.tenancy.receipts import change_of, wait_for_receipt
from control_plane.tenancy.routes import check_routes
from control_plane.tenancy.tokens import check_model_patterns
from gateway.connect_guard import BaseUrl, BaseUrlInvalid, check_base_url
from gateway.sql import load_queries
from gateway.vendors.credential import KeyUnusable
from gateway.vendors.presets import BASE_URL_FORMS, PLACEHOLDER_KEY, PRESETS, Preset
from gateway.vendors.registry import KINDS, InvalidVendorName, check_vendor_name
from gateway.vendors.seal import info, seal

_QUERIES: Final = load_queries(__package__, "vendors.sql")
_LOCK = _QUERIES["lock"]
_NEWEST_PUBLIC_KEY = _QUERIES["newest_public_key"]
_ADD_PUBLIC_KEY = _QUERIES["add_public_key"]
_PUBLIC_KEYS = _QUERIES["public_keys"]
_LIST = _QUERIES["list"]
_INSERT = _QUERIES["insert"]
_REPLACE = _QUERIES["replace"]
_SET_KEY = _QUERIES["set_key"]
_SET_DEFAULT = _QUERIES["set_default"]
_REMOVE = _QUERIES["remove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVendor:
    """What a vendor is to be. `with_preset` fills in what a known vendor's name says."""

    name: str
    kind: str  # empty: not said
    base_url: str  # empty: not said
    key: str = field(repr=False)  # empty for a simulator, which takes any, or: not said
    is_private: bool = False
    is_default: bool = False
    models: Sequence[str] | None = None
    usage_unasked: bool = False
    is_simulator: bool = False


async def add_vendor(
    connection: asyncpg.Connection,
    vendor: NewVendor,
    *,
    replace: bool = False,
    allowed_hosts: frozenset[str] | None = None,
) -> dict[str, Any]:
    """Add a vendor, in a simulator's place where one has its name; return how it can be called.

    The first vendor of a wire format is its default. `replace`: a real one gives way as well.
    Raises BadArgument, Refused.
    """
    base_url = check_vendor(vendor, allowed_hosts=allowed_hosts)
    async with connection.transaction():
        await connection.execute(_LOCK)
        present = await connection.fetch(_LIST)
        old = next((row for row in present if row["name"] == vendor.name), None)
        if old is not None and not replace and not old["is_simulator"]:
            raise Refused(
                f"There is a vendor '{vendor.name}' already: --replace puts this one in its place.",
                field="name",
                code="exists",
            )
        others = [row for row in present if row is not old]
        kept = old is not None and old["is_default"] and _wire(old["kind"]) == _wire(vendor.kind)
        is_default = vendor.is_default or kept
        if vendor.is_default:
            for row in others:
                if row["is_default"] and _wire(row["kind"]) == _wire(vendor.kind):
                    await connection.execute(_SET_DEFAULT, row["id"], False)

        # A simulator goes and a vendor of its own comes; a vendor that is replaced keeps its id.
        vendor_id, version = str(uuid.uuid4()), 1
        if old is not None and old["is_simulator"] and not vendor.is_simulator:
            await connection.execute(_REMOVE, old["id"])
        elif old is not None:
            vendor_id, version = old["id"], old["key_version"] + 1
        values = (vendor.is_private, is_default, _listed(vendor.models), vendor.usage_unasked)
        sealed = b"" if vendor.is_simulator else await _sealed(
            connection, vendor.key, vendor_id=vendor_id, kind=vendor.kind, base_url=base_url,
            key_version=version,
        )  # fmt: skip
        if version == 1:
            await connection.execute(
                _INSERT, vendor_id, vendor.name, vendor.kind, str(base_url), *values,
                vendor.is_simulator, sealed, version,
            )  # fmt: skip
        else:
            await connection.execute(
                _REPLACE, vendor_id, vendor.kind, str(base_url), *values, vendor.is_simulator,
                sealed, version,
            )  # fmt: skip
        await _check_and_settle(connection)
    return {
        "name": vendor.name,
        "kind": vendor.kind,
        "base_url": str(base_url),
        "key_version": version,
    }


def with_preset(
    vendor: NewVendor, *, preset: str | None = None, usage_unasked: bool | None = None
) -> NewVendor:
    """Return a vendor with everything that was not said of it, from a preset where one fits.

    `preset` names it; without it, the vendor's own name does, and where that one is called at a
    base URL of its own, it tells no more than the kind. `usage_unasked` is what was said of it,
    None for nothing. What was said always holds. Raises BadArgument where something is missing.
    """
    known = _preset(vendor, preset)
    if known is not None:
        unasked = known.usage_unasked if usage_unasked is None else usage_unasked
        is_there = not vendor.base_url  # at the preset's own address
        vendor = replace(
            vendor,
            kind=vendor.kind or known.kind,
            base_url=vendor.base_url or known.base_url,
            is_private=vendor.is_private or (is_there and known.is_private),
            usage_unasked=unasked,
        )
    elif usage_unasked is not None:
        vendor = replace(vendor, usage_unasked=usage_unasked)
    if not vendor.base_url and vendor.kind in BASE_URL_FORMS:
        raise BadArgument(
            f"--base-url is missing. For {vendor.kind} it is {BASE_URL_FORMS[vendor.kind]}",
            field="base-url",
        )
    for value, name in ((vendor.kind, "kind"), (vendor.base_url, "base-url")):
        if not value:
            raise BadArgument(
                f"--{name} is missing, and '{vendor.name}' is no known vendor of that kind. "
                f"Known are {', '.join(PRESETS)}.",
                field=name,
            )
    if not vendor.key and vendor.is_private:
        return replace(vendor, key=PLACEHOLDER_KEY)
    if not vendor.key:
        raise BadArgument(
            "--key-file is missing: only a private vendor may need no key.", field="key-file"
        )
    return vendor


def _preset(vendor: NewVendor, name: str | None) -> Preset | None:
    if name is None:
        known = PRESETS.get(vendor.name)
        if known is None or vendor.kind not in ("", known.kind):
            return None
        return Preset(kind=known.kind, base_url=vendor.base_url) if vendor.base_url else known
    if name not in PRESETS:
        raise BadArgument(
            f"There is no preset '{name}'; there are {', '.join(PRESETS)}.", field="preset"
        )
    known = PRESETS[name]
    if vendor.kind not in ("", known.kind) and not vendor.base_url:
        raise BadArgument(
            f"The preset '{name}' is of kind {known.kind}: give another kind's --base-url too.",
            field="base-url",
        )
    return known


def check_vendor(vendor: NewVendor, *, allowed_hosts: frozenset[str] | None = None) -> BaseUrl:
    """Return a vendor's base URL in its parts. Raises BadArgument for what no vendor can be."""
    try:
        check_vendor_name(vendor.name)
    except InvalidVendorName as error:
        raise BadArgument(str(error), field="name") from error
    if vendor.kind not in KINDS:
        raise BadArgument(
            f"There is no kind '{vendor.kind}'; there are {', '.join(KINDS)}.", field="kind"
        )
    base_url = _base_url(vendor.base_url, is_private=vendor.is_private, allowed_hosts=allowed_hosts)
    if not vendor.is_simulator:
        check_key(vendor.kind, vendor.key, base_url)
    if vendor.models is not None:
        check_model_patterns(vendor.models)
    return base_url


def check_key(kind: str, key: str, base_url: BaseUrl) -> None:
    """Raise BadArgument for a key that could not be called with. The message never quotes it."""
    try:
        KINDS[kind].credential_header(key.encode())
        open_signer = KINDS[kind].open_signer
        if open_signer is not None:
            open_signer(key.encode(), base_url)
    except KeyUnusable as error:
        raise BadArgument(str(error), field="key-file") from error


async def list_vendors(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """Return every vendor, oldest first; none of them with its key."""
    return [dict(row) for row in await connection.fetch(_LIST)]


async def rotate_vendor(connection: asyncpg.Connection, name: str, key: str) -> dict[str, Any]:
    """Give a vendor a new key. Raises NotFound, BadArgument."""
    async with connection.transaction():
        await connection.execute(_LOCK)
        row = _named(await connection.fetch(_LIST), name)
        if row["is_simulator"]:
            raise Refused(
                f"'{name}' is the simulator, which has no key: `kaixu vendor add` puts a vendor "
                "in its place.",
                field="name",
            )
        version = row["key_version"] + 1
        base_url = _base_url(row["base_url"], is_private=row["is_private"], allowed_hosts=None)
        check_key(row["kind"], key, base_url)
        sealed = await _sealed(
            connection, key, vendor_id=row["id"], kind=row["kind"], base_url=base_url,
            key_version=version,
        )  # fmt: skip
        await connection.execute(_SET_KEY, row["id"], sealed, version)
    return {
        "name": name,
        "kind": row["kind"],
        "base_url": row["base_url"],
        "key_version": version,
    }


async def remove_vendor(
    connection: asyncpg.Connection, name: str, *, is_embedded: bool
) -> dict[str, Any]:
    """Remove a vendor and forget its key; `receipt` says which workers call it no more.

    Calls that are open end by themselves. Raises NotFound; Refused where aliases lead to it.
    """
    began = time.monotonic()
    async with connection.transaction():
        await connection.execute(_LOCK)
        row = _named(await connection.fetch(_LIST), name)
        aliases = [row["name"] for row in await list_aliases(connection) if row["vendor"] == name]
        if aliases:
            raise Refused(
                f"The alias '{aliases[0]}' leads to this vendor: set it anew, or remove it first.",
                field="name",
            )
        xact = await connection.fetchval(_REMOVE, row["id"])
        await _check_and_settle(connection)
    receipt = await wait_for_receipt(
        connection, await change_of(connection, xact), is_embedded=is_embedded, began=began
    )
    return {"name": name, "removed": True, "receipt": receipt}


# ---------------------------------------------------------------------------------- gateway keys


async def register_public_key(connection: asyncpg.Connection, public_key: str) -> None:
    """Let vendor keys be sealed to a gateway key from now on."""
    await connection.execute(_ADD_PUBLIC_KEY, public_key)


async def public_keys(connection: asyncpg.Connection) -> set[str]:
    """Return every gateway key that was ever registered."""
    return {row["public_key"] for row in await connection.fetch(_PUBLIC_KEYS)}


async def _sealed(
    connection: asyncpg.Connection,
    key: str,
    *,
    vendor_id: str,
    kind: str,
    base_url: BaseUrl,
    key_version: int,
) -> bytes:
    public_key = await connection.fetchval(_NEWEST_PUBLIC_KEY)
    if public_key is None:
        raise Refused(
            "This database has no gateway key to seal a vendor key to: `kaixu up` registers its "
            "own, or the one that `kaixu vault keygen` makes and KAIXU_VAULT_KEY_FILE names.",
            code="no_vault_key",
        )
    tied_to = info(vendor_id, None, kind, base_url.origin, key_version)
    return seal(public_key, tied_to, key.encode())


# --------------------------------------------------------------------------------------- details


async def _check_and_settle(connection: asyncpg.Connection) -> None:
    """Let each wire format have a default, and refuse what leaves a call without one target."""
    rows = await connection.fetch(_LIST)
    defaults = {_wire(row["kind"]) for row in rows if row["is_default"]}
    for row in rows:
        if _wire(row["kind"]) not in defaults:
            defaults.add(_wire(row["kind"]))
            await connection.execute(_SET_DEFAULT, row["id"], True)
    await check_routes(connection)


def _named(rows: Sequence[asyncpg.Record], name: str) -> asyncpg.Record:
    for row in rows:
        if row["name"] == name:
            return row
    raise NotFound(f"There is no vendor '{name}': `kaixu vendor list` has them.", field="name")


def _wire(kind: str) -> str:
    return KINDS[kind].groups[0] if kind in KINDS else kind


def _listed(models: Sequence[str] | None) -> list[str] | None:
    return None if models is None else list(models)


def _base_url(url: str, *, is_private: bool, allowed_hosts: frozenset[str] | None) -> BaseUrl:
    try:
        return check_base_url(url, allow_private=is_private, allowed_hosts=allowed_hosts)
    except BaseUrlInvalid as error:
        raise BadArgument(f"{error.problem} {error.fix}", field="base-url") from error
