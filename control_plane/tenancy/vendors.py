"""Vendors: what the gateway calls, with keys that only gateways can open.

A key is sealed here, to the gateways' public key, together with the id, kind, origin and key
version that it was entered for. Nothing in this plane can open it again.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from control_plane.audit_log import COMMAND, Origin, record
from control_plane.errors import BadArgument, NotFound, Refused
from control_plane.tenancy.aliases import list_aliases
from control_plane.tenancy.receipts import change_of, wait_for_receipt
from control_plane.tenancy.routes import check_routes
from control_plane.tenancy.tokens import check_model_patterns
from gateway.connect_guard import BaseUrl, BaseUrlInvalid, check_base_url
from gateway.sql import load_queries
from gateway.vendors.credential import KeyUnusable
from gateway.vendors.registry import KINDS, InvalidVendorName, check_vendor_name
from gateway.vendors.seal import info, seal

VENDORS_MAX: Final = 100  # of one org; each is loaded by every gateway

_QUERIES: Final = load_queries(__package__, "vendors.sql")
_LOCK = _QUERIES["lock"]
_NEWEST_PUBLIC_KEY = _QUERIES["newest_public_key"]
_ADD_PUBLIC_KEY = _QUERIES["add_public_key"]
_PUBLIC_KEYS = _QUERIES["public_keys"]
_LIST = _QUERIES["list"]
_INSERT = _QUERIES["insert"]
_REPLACE = _QUERIES["replace"]
_CHANGE = _QUERIES["change"]
_SET_KEY = _QUERIES["set_key"]
_SET_DEFAULT = _QUERIES["set_default"]
_REMOVE = _QUERIES["remove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVendor:
    """What a vendor is to be; `vendor_presets` fills in what a known vendor's name says."""

    name: str
    kind: str  # empty: not said
    base_url: str  # empty: not said
    key: str = field(repr=False)  # empty for a simulator, which takes any, or: not said
    is_private: bool = False
    is_default: bool = False
    models: Sequence[str] | None = None
    usage_unasked: bool = False
    is_simulator: bool = False
    is_disabled: bool = False  # called by tests of it only


async def add_vendor(
    connection: asyncpg.Connection,
    vendor: NewVendor,
    *,
    replace: bool = False,
    allowed_hosts: frozenset[str] | None = None,
    org_id: uuid.UUID | None = None,
    origin: Origin = COMMAND,
    check: Callable[[asyncpg.Record | None], None] | None = None,
) -> dict[str, Any]:
    """Add a vendor, in a simulator's place where one has its name; return how it can be called.

    The first vendor of a wire format is its default. `replace`: a real one gives way as well, and
    leaves its key to one of its kind and origin that comes without. `org_id`: whose it is, None for
    the operator's. `check` is called with the one that is there, in the transaction, and may
    refuse. Raises BadArgument, Refused.
    """
    base_url = check_vendor(vendor, allowed_hosts=allowed_hosts, may_lack_key=replace)
    async with connection.transaction():
        await connection.execute(_LOCK)
        present = await connection.fetch(_LIST, org_id)
        old = next((row for row in present if row["name"] == vendor.name), None)
        if check is not None:
            check(old)
        if old is not None and not replace and not old["is_simulator"]:
            raise Refused(
                f"There is a vendor '{vendor.name}' already: --replace puts this one in its place.",
                field="name",
                code="exists",
            )
        if old is None and org_id is not None and len(present) >= VENDORS_MAX:
            raise Refused(f"An org has at most {VENDORS_MAX} vendors.", field="name")
        is_default = await _takes_default(connection, vendor, old=old, present=present)
        version = await _store(
            connection, vendor, base_url=base_url, old=old, org_id=org_id, is_default=is_default
        )
        await _check_and_settle(connection, org_id)
        after = named(await connection.fetch(_LIST, org_id), vendor.name)
        await record(
            connection, origin, "vendor.create" if old is None else "vendor.replace",
            org_id=org_id, target_kind="vendor", target_id=vendor.name,
            before=None if old is None else facts(old), after=facts(after),
        )  # fmt: skip
    return {
        "name": vendor.name,
        "kind": vendor.kind,
        "base_url": str(base_url),
        "key_version": version,
    }


async def _takes_default(
    connection: asyncpg.Connection,
    vendor: NewVendor,
    *,
    old: asyncpg.Record | None,
    present: Sequence[asyncpg.Record],
) -> bool:
    """Return whether a vendor becomes its format's default; if it says so, no other one is."""
    if vendor.is_default:
        await end_defaults(connection, vendor.kind, [row for row in present if row is not old])
        return True
    return old is not None and old["is_default"] and _wire(old["kind"]) == _wire(vendor.kind)


async def end_defaults(
    connection: asyncpg.Connection, kind: str, others: Sequence[asyncpg.Record]
) -> None:
    """Let none of the others be the default of this kind's wire format."""
    for row in others:
        if row["is_default"] and _wire(row["kind"]) == _wire(kind):
            await connection.execute(_SET_DEFAULT, row["id"], False)


async def _store(
    connection: asyncpg.Connection,
    vendor: NewVendor,
    *,
    base_url: BaseUrl,
    old: asyncpg.Record | None,
    org_id: uuid.UUID | None,
    is_default: bool,
) -> int:
    """Write a vendor's row, its key sealed; return the key's version.

    A simulator goes and a vendor of its own comes; a vendor that is replaced keeps its id.
    """
    vendor_id, version = str(uuid.uuid4()), 1
    if old is not None and old["is_simulator"] and not vendor.is_simulator:
        await connection.execute(_REMOVE, old["id"])
    elif old is not None:
        vendor_id, version = old["id"], old["key_version"] + 1
    if not vendor.key and not vendor.is_simulator:
        if old is None or not _same_destination(old, vendor.kind, base_url):
            raise BadArgument(
                "A key is needed: none was entered for this kind and address yet.", field="key-file"
            )
        await connection.execute(
            _CHANGE, vendor_id, str(base_url), is_default, _listed(vendor.models),
            vendor.usage_unasked, vendor.is_disabled,
        )  # fmt: skip
        return version - 1
    sealed = b"" if vendor.is_simulator else await _sealed(
        connection, vendor.key, vendor_id=vendor_id, org_id=org_id, kind=vendor.kind,
        base_url=base_url, key_version=version,
    )  # fmt: skip
    values = (vendor.is_private, is_default, _listed(vendor.models), vendor.usage_unasked)
    if version == 1:
        await connection.execute(
            _INSERT, vendor_id, org_id, vendor.name, vendor.kind, str(base_url), *values,
            vendor.is_simulator, vendor.is_disabled, sealed, version,
        )  # fmt: skip
    else:
        await connection.execute(
            _REPLACE, vendor_id, vendor.kind, str(base_url), *values, vendor.is_simulator,
            vendor.is_disabled, sealed, version,
        )  # fmt: skip
    return version


def _same_destination(old: asyncpg.Record, kind: str, base_url: BaseUrl) -> bool:
    """Return whether the key of a vendor that is there may go where this one is called."""
    if old["is_simulator"] or old["kind"] != kind:
        return False
    before = _base_url(old["base_url"], is_private=old["is_private"], allowed_hosts=None)
    return before.origin == base_url.origin


def check_vendor(
    vendor: NewVendor,
    *,
    allowed_hosts: frozenset[str] | None = None,
    may_lack_key: bool = False,
) -> BaseUrl:
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
    if not vendor.is_simulator and (vendor.key or not may_lack_key):
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


async def list_vendors(
    connection: asyncpg.Connection, *, org_id: uuid.UUID | None = None
) -> list[dict[str, Any]]:
    """Return every vendor of an org, or the operator's, oldest first; none with its key."""
    return [dict(row) for row in await connection.fetch(_LIST, org_id)]


async def rotate_vendor(
    connection: asyncpg.Connection,
    name: str,
    key: str,
    *,
    org_id: uuid.UUID | None = None,
    origin: Origin = COMMAND,
) -> dict[str, Any]:
    """Give a vendor a new key. Raises NotFound, BadArgument."""
    async with connection.transaction():
        await connection.execute(_LOCK)
        row = named(await connection.fetch(_LIST, org_id), name)
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
            connection, key, vendor_id=row["id"], org_id=org_id, kind=row["kind"],
            base_url=base_url, key_version=version,
        )  # fmt: skip
        await connection.execute(_SET_KEY, row["id"], sealed, version)
        await record(
            connection, origin, "vendor.rotate_key", org_id=org_id, target_kind="vendor",
            target_id=name, before={"key_version": row["key_version"]},
            after={"key_version": version},
        )  # fmt: skip
    return {
        "name": name,
        "kind": row["kind"],
        "base_url": row["base_url"],
        "key_version": version,
    }


async def remove_vendor(
    connection: asyncpg.Connection,
    name: str,
    *,
    is_embedded: bool,
    org_id: uuid.UUID | None = None,
    origin: Origin = COMMAND,
) -> dict[str, Any]:
    """Remove a vendor and forget its key; `receipt` says which workers call it no more.

    Calls that are open end by themselves. Raises NotFound; Refused where aliases lead to it.
    """
    began = time.monotonic()
    async with connection.transaction():
        xact = await remove_row(connection, name, org_id=org_id, origin=origin)
    receipt = await wait_for_receipt(
        connection, await change_of(connection, xact), is_embedded=is_embedded, began=began
    )
    return {"name": name, "removed": True, "receipt": receipt}


async def remove_row(
    connection: asyncpg.Connection,
    name: str,
    *,
    org_id: uuid.UUID | None,
    origin: Origin,
    check: Callable[[asyncpg.Record], None] | None = None,
) -> str:
    """Remove a vendor within the caller's transaction; return which one that is, for `change_of`.

    `check` is called with the vendor that is there, and may refuse. Raises NotFound, Refused.
    """
    await connection.execute(_LOCK)
    row = named(await connection.fetch(_LIST, org_id), name)
    if check is not None:
        check(row)
    aliases = await list_aliases(connection, org_id=org_id)
    leading = [alias["name"] for alias in aliases if alias["vendor"] == name]
    if leading:
        raise Refused(
            f"The alias '{leading[0]}' leads to this vendor: set it anew, or remove it first.",
            field="name",
        )
    xact: str = await connection.fetchval(_REMOVE, row["id"])
    await _check_and_settle(connection, org_id)
    await record(
        connection, origin, "vendor.delete", org_id=org_id, target_kind="vendor", target_id=name,
        before=facts(row),
    )  # fmt: skip
    return xact


async def change_vendor(
    connection: asyncpg.Connection,
    name: str,
    changes: dict[str, Any],
    *,
    org_id: uuid.UUID | None,
    origin: Origin,
    check: Callable[[asyncpg.Record], None] | None = None,
) -> None:
    """Change what a vendor's key is not tied to, within the caller's transaction.

    `changes` has some of models, usage_unasked, is_default, is_disabled. Raises NotFound,
    BadArgument, Refused.
    """
    await connection.execute(_LOCK)
    present = await connection.fetch(_LIST, org_id)
    row = named(present, name)
    if check is not None:
        check(row)
    if changes.get("models") is not None:
        check_model_patterns(changes["models"])
    if changes.get("is_default"):
        await end_defaults(connection, row["kind"], [one for one in present if one is not row])
    after = {**row, **changes}
    await connection.execute(
        _CHANGE, row["id"], row["base_url"], after["is_default"], _listed(after["models"]),
        after["usage_unasked"], after["is_disabled"],
    )  # fmt: skip
    await _check_and_settle(connection, org_id)
    after = facts(named(await connection.fetch(_LIST, org_id), name))
    if after != facts(row):
        await record(
            connection, origin, "vendor.update", org_id=org_id, target_kind="vendor",
            target_id=name, before=facts(row), after=after,
        )  # fmt: skip


def facts(row: asyncpg.Record | Mapping[str, Any]) -> dict[str, Any]:
    """Return what the audit log says of a vendor."""
    return {
        "kind": row["kind"],
        "base_url": row["base_url"],
        "private": row["is_private"],
        "default": row["is_default"],
        "models": row["models"],
        "usage_unasked": row["usage_unasked"],
        "disabled": row["is_disabled"],
        "key_version": row["key_version"],
    }


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
    org_id: uuid.UUID | None,
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
    of_org = None if org_id is None else str(org_id)
    tied_to = info(vendor_id, of_org, kind, base_url.origin, key_version)
    return seal(public_key, tied_to, key.encode())


# --------------------------------------------------------------------------------------- details


async def _check_and_settle(connection: asyncpg.Connection, org_id: uuid.UUID | None) -> None:
    """Let each wire format have a default, and refuse what leaves a call without one target.

    An org's vendors are a default only where it says so: else the operator's stays.
    """
    rows = [] if org_id is not None else await connection.fetch(_LIST, org_id)
    defaults = {_wire(row["kind"]) for row in rows if row["is_default"]}
    for row in rows:
        if _wire(row["kind"]) not in defaults:
            defaults.add(_wire(row["kind"]))
            await connection.execute(_SET_DEFAULT, row["id"], True)
    await check_routes(connection, org_id=org_id)


def named(rows: Sequence[asyncpg.Record], name: str) -> asyncpg.Record:
    """Return the vendor of this name. Raises NotFound."""
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
