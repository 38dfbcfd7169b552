"""What differs between the vendors of a file and those that are there."""

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec

from control_plane.apply_file import UNSET, KeyPlace, Source, VendorPart
from control_plane.audit_log import COMMAND
from control_plane.errors import BadArgument
from control_plane.settings import read_secret_file
from control_plane.tenancy.vendor_presets import with_preset
from control_plane.tenancy.vendors import (
    NewVendor,
    add_vendor,
    change_vendor,
    check_vendor,
    facts,
    list_vendors,
)
from gateway.vendors.presets import PLACEHOLDER_KEY

# What the installation itself is run with: who writes the file is not to have it sent to an address
# of theirs.
_OWN_SECRET: Final = re.compile(r"KAIXU_.*|JWT_SECRET(_FILE)?|STRIPE_SECRET_KEY(_FILE)?")

Work = Callable[[asyncpg.Connection], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One difference, and what makes it none; `place` is where the file asks for it."""

    action: str  # create, update, delete
    kind: str
    name: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    place: str
    work: Work = field(repr=False)
    is_late: bool = False  # waits for workers: after everything else has committed

    def document(self) -> dict[str, Any]:
        """Return what is told of it."""
        return {n: getattr(self, n) for n in ("action", "kind", "name", "before", "after")}


class VendorComparison:
    """Compares the vendors of one file."""

    def __init__(
        self,
        source: Source,
        *,
        environment: Mapping[str, str],
        allowed_hosts: frozenset[str] | None,
        org_id: uuid.UUID | None,
    ) -> None:
        """`environment` is where keys may be; `org_id`: whose vendors, None for the operator's."""
        self._source = source
        self._environment = environment
        self._allowed_hosts = allowed_hosts
        self._org_id = org_id

    async def steps(self, connection: asyncpg.Connection) -> list[Step]:
        """Return what differs. Raises BadArgument."""
        present = {row["name"]: row for row in await list_vendors(connection, org_id=self._org_id)}
        wanted = self._source.wanted.vendors
        if isinstance(wanted, msgspec.UnsetType):
            return []
        steps = []
        for at, part in enumerate(wanted):
            place = f"vendors[{at}]"
            row = present.get(part.name)
            step = (
                self._new_vendor(part, row, place)
                if row is None or row["is_simulator"] or self._moves(part, row, place)
                else self._changed_vendor(part, row, place)
            )
            if step is not None:
                steps.append(step)
        return steps

    def _vendor(self, part: VendorPart, row: dict[str, Any] | None, place: str) -> NewVendor:
        """Return a vendor as the file wants it, with what is there where it says nothing."""
        names = {"models": None, "private": False, "default": False, "disabled": False}
        said = {name: getattr(part, name) for name in (*names, "kind", "base_url", "preset")}
        kept = {} if row is None or row["is_simulator"] else facts(row)
        value = {
            n: kept.get(n, names.get(n)) if v is UNSET else v for n, v in said.items()
        }  # fmt: skip
        unasked = kept.get("usage_unasked") if part.usage_unasked is UNSET else part.usage_unasked
        vendor = NewVendor(
            name=part.name,
            kind=value["kind"] or "",
            base_url=value["base_url"] or "",
            key=PLACEHOLDER_KEY,
            is_private=bool(value["private"]),
            is_default=part.default is True,
            models=value["models"],
            is_disabled=bool(value["disabled"]),
        )
        try:
            vendor = with_preset(vendor, preset=value["preset"] or None, usage_unasked=unasked)
            check_vendor(
                replace(vendor, key=""), allowed_hosts=self._allowed_hosts, may_lack_key=True
            )
        except BadArgument as error:
            name = (error.field or "").replace("-", "_")
            raise self._source.refusal(error.message, f"{place}.{name}") from error
        return vendor

    def _moves(self, part: VendorPart, row: dict[str, Any], place: str) -> bool:
        """Return whether a vendor is to be called in another way, or elsewhere."""
        vendor = self._vendor(part, row, place)
        url = check_vendor(replace(vendor, key=""), may_lack_key=True)
        there = row["kind"], row["base_url"], row["is_private"]
        return (vendor.kind, str(url), vendor.is_private) != there

    def _new_vendor(self, part: VendorPart, row: dict[str, Any] | None, place: str) -> Step:
        vendor = self._vendor(part, row, place)
        if not (vendor.is_private and part.key is UNSET):
            vendor = replace(vendor, key=self._key(part, f"{place}.key"))

        async def work(connection: asyncpg.Connection) -> None:
            await add_vendor(
                connection, vendor, replace=True, allowed_hosts=self._allowed_hosts,
                org_id=self._org_id, origin=COMMAND,
            )  # fmt: skip

        after = {
            "kind": vendor.kind, "base_url": vendor.base_url, "models": vendor.models,
            "private": vendor.is_private, "default": vendor.is_default,
            "usage_unasked": vendor.usage_unasked, "disabled": vendor.is_disabled,
        }  # fmt: skip
        return Step(
            action="create" if row is None else "update", kind="vendor", name=part.name,
            before=None if row is None else facts(row), after=after, place=place, work=work,
        )  # fmt: skip

    def _changed_vendor(self, part: VendorPart, row: dict[str, Any], place: str) -> Step | None:
        columns = {
            "models": "models", "usage_unasked": "usage_unasked", "default": "is_default",
            "disabled": "is_disabled",
        }  # fmt: skip
        changes = {
            column: getattr(part, name)
            for name, column in columns.items()
            if getattr(part, name) is not UNSET and getattr(part, name) != row[column]
        }
        if not changes:
            return None

        async def work(connection: asyncpg.Connection) -> None:
            await change_vendor(connection, part.name, changes, org_id=self._org_id, origin=COMMAND)

        return Step(
            action="update", kind="vendor", name=part.name,
            before={column: row[column] for column in changes}, after=changes, place=place,
            work=work,
        )  # fmt: skip

    def _key(self, part: VendorPart, place: str) -> str:
        """Return the key that the file points to. Raises BadArgument, never quoting it."""
        where = part.key
        if isinstance(where, msgspec.UnsetType) or (where.env is None) == (where.file is None):
            raise self._source.refusal(
                "Say where its key is: `key: {env: NAME}` or `key: {file: PATH}`.", place
            )
        if self._is_own_secret(where):
            raise self._source.refusal(
                "This is a secret of the installation's own, and no vendor's key.", place
            )
        if where.file is not None:
            try:
                return read_secret_file(Path(where.file).expanduser(), field=place)
            except BadArgument as error:
                raise self._source.refusal(error.message, place) from error
        key = self._environment.get(where.env or "", "").strip()
        if not key:
            raise self._source.refusal(f"{where.env} is not set in the environment.", place)
        return key

    def _is_own_secret(self, where: KeyPlace) -> bool:
        if where.file is None:
            return _OWN_SECRET.fullmatch(where.env or "") is not None
        there = Path(where.file).expanduser().resolve()
        return any(
            Path(path).resolve() == there
            for name, path in self._environment.items()
            if name.endswith("_FILE") and _OWN_SECRET.fullmatch(name)
        )
