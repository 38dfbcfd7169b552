"""`kaixu apply`: make an org, or the installation, as a file says; do nothing where it is so.

Everything but limits is one transaction: all of it holds, or nothing. What the file does not
mention stays; `prune` removes vendors, aliases and workspaces that are not in the file's lists.
"""

import uuid
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
import msgspec

from control_plane.apply_file import UNSET, Limits, Source, WorkspacePart
from control_plane.apply_vendors import Step, VendorComparison
from control_plane.audit_log import COMMAND, record
from control_plane.errors import BadArgument, ControlError, NotFound, Refused
from control_plane.tenancy.aliases import list_aliases, remove_alias, set_alias
from control_plane.tenancy.limits import LimitChange, list_limits, parse_rate, set_limits
from control_plane.tenancy.vendors import list_vendors, remove_row
from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "apply.sql")


class Applier:
    """Compares one file with one database, and makes them alike."""

    def __init__(
        self,
        source: Source,
        *,
        environment: Mapping[str, str],
        allowed_hosts: frozenset[str] | None,
        is_embedded: bool,
        prune: bool,
    ) -> None:
        """`environment` is where keys may be; `prune`: remove what is not in the file's lists."""
        self._source = source
        self._wanted = source.wanted
        self._environment = environment
        self._allowed_hosts = allowed_hosts
        self._is_embedded = is_embedded
        self._prune = prune
        self._org_id: uuid.UUID | None = None
        self._workspaces: dict[str, uuid.UUID] = {}

    async def apply(self, connection: asyncpg.Connection, *, dry_run: bool) -> list[dict[str, Any]]:
        """Return the differences that there were; without `dry_run` there are none any more.

        Raises BadArgument, NotFound, Refused, whose messages begin with file and line.
        """
        steps: list[Step] = []
        transaction = connection.transaction()
        await transaction.start()
        try:
            # In the order in which they need each other; each part is compared when those before
            # it are done, in a dry run as well: it is all taken back then.
            for part in (self._org, self._workspace_steps, self._member_steps, self._vendor_steps,
                         self._alias_steps, self._removals):  # fmt: skip
                for step in await part(connection):
                    steps.append(step)
                    await self._do(step, connection)
            await self._check_owners(connection)
            late = await self._limit_steps(connection)
            if dry_run:
                await transaction.rollback()
            else:
                await transaction.commit()
        except BaseException:
            if not connection.is_closed() and connection.is_in_transaction():
                await transaction.rollback()
            raise
        if not dry_run:
            for step in late:
                await self._do(step, connection)
        return [step.document() for step in (*steps, *late)]

    async def _do(self, step: Step, connection: asyncpg.Connection) -> None:
        try:
            await step.work(connection)
        except ControlError as error:
            line = self._source.refusal(error.message, step.place)
            raise type(error)(line.message, field=step.place, code=error.code) from error

    # the org and who is in it

    async def _org(self, connection: asyncpg.Connection) -> list[Step]:
        wanted = self._wanted.org
        if isinstance(wanted, msgspec.UnsetType):
            for name in ("workspaces", "members"):
                if getattr(self._wanted, name) is not UNSET:
                    raise self._source.refusal("Say whose: `org: {name: …}`.", name)
            return []
        rows = await connection.fetch(_QUERIES["orgs"], wanted.name)
        if len(rows) != 1:
            told = "There is no such org" if not rows else "There are several: give the id"
            raise NotFound(self._source.refusal(f"{told}.", "org.name").message, field="org.name")
        self._org_id = rows[0]["id"]
        names = ("requires_totp", "token_days_max")
        before = {name: rows[0][name] for name in names}
        said = {n: getattr(wanted, n) for n in names if getattr(wanted, n) is not UNSET}
        after = {**before, **said}
        if after == before:
            return []

        async def work(connection: asyncpg.Connection) -> None:
            await connection.execute(_QUERIES["change_org"], self._org_id, *after.values())
            await self._record(
                connection, "org.update", "org", self._org_id, before=before, after=after
            )

        return [
            Step(action="update", kind="org", name=wanted.name, before=before, after=after,
                 place="org", work=work)
        ]  # fmt: skip

    async def _workspace_steps(self, connection: asyncpg.Connection) -> list[Step]:
        rows = await connection.fetch(_QUERIES["workspaces"], self._org_id)
        self._workspaces = {row["name"]: row["id"] for row in rows}
        steps = []
        for at, part in enumerate(self._listed("workspaces")):
            assert isinstance(part, WorkspacePart)
            if part.name in self._workspaces:
                continue

            async def work(connection: asyncpg.Connection, name: str = part.name) -> None:
                made = await connection.fetchval(_QUERIES["add_workspace"], self._org_id, name)
                self._workspaces[name] = made
                await self._record(
                    connection,
                    "workspace.create",
                    "workspace",
                    made,
                    before=None,
                    after={"name": name},
                )

            steps.append(
                Step(action="create", kind="workspace", name=part.name, before=None,
                     after={"name": part.name}, place=f"workspaces[{at}]", work=work)
            )  # fmt: skip
        return steps

    async def _member_steps(self, connection: asyncpg.Connection) -> list[Step]:
        rows = await connection.fetch(_QUERIES["members"], self._org_id)
        members = {row["email_key"]: row for row in rows}
        members |= {row["email"].lower(): row for row in rows}
        steps = []
        for at, part in enumerate(self._listed("members")):
            row = members.get(part.email.lower())
            if row is None:
                raise self._source.refusal(
                    "Nobody in the org has this address: invite them first.", f"members[{at}].email"
                )
            unknown = part.workspaces.keys() - self._workspaces.keys()
            if unknown:
                raise self._source.refusal(
                    f"There is no workspace '{min(unknown)}'.", f"members[{at}].workspaces"
                )
            ids = {name: str(self._workspaces[name]) for name in part.workspaces}
            present = msgspec.json.decode(row["workspaces"])
            before = {
                "role": row["role"], "workspaces": {n: present.get(ids[n]) for n in ids},
            }  # fmt: skip
            role = row["role"] if isinstance(part.role, msgspec.UnsetType) else part.role.value
            after = {
                "role": role, "workspaces": {n: r.value for n, r in part.workspaces.items()},
            }  # fmt: skip
            if before == after:
                continue

            async def work(
                connection: asyncpg.Connection,
                user_id: uuid.UUID = row["id"],
                before: dict[str, Any] = before,
                after: dict[str, Any] = after,
            ) -> None:
                await connection.execute(_QUERIES["set_role"], user_id, after["role"])
                for name, role in after["workspaces"].items():
                    await connection.execute(
                        _QUERIES["set_workspace_role"], self._org_id, self._workspaces[name],
                        user_id, role,
                    )  # fmt: skip
                await self._record(
                    connection, "member.update", "user", user_id, before=before, after=after
                )

            steps.append(
                Step(action="update", kind="member", name=part.email, before=before, after=after,
                     place=f"members[{at}]", work=work)
            )  # fmt: skip
        return steps

    async def _check_owners(self, connection: asyncpg.Connection) -> None:
        if self._listed("members") and not await connection.fetchval(
            _QUERIES["owners"], self._org_id
        ):
            message = self._source.refusal("An org has an owner: this leaves none.", "members")
            raise Refused(message.message, field="members", code="last_owner")

    # vendors and aliases

    async def _vendor_steps(self, connection: asyncpg.Connection) -> list[Step]:
        comparison = VendorComparison(
            self._source,
            environment=self._environment,
            allowed_hosts=self._allowed_hosts,
            org_id=self._org_id,
        )
        return await comparison.steps(connection)

    async def _alias_steps(self, connection: asyncpg.Connection) -> list[Step]:
        wanted = self._wanted.aliases
        if isinstance(wanted, msgspec.UnsetType):
            return []
        rows = await list_aliases(connection, org_id=self._org_id)
        present = {row["name"]: f"{row['vendor']}/{row['model']}" for row in rows}
        steps = []
        for name, target in wanted.items():
            if present.get(name) == target:
                continue

            async def work(
                connection: asyncpg.Connection, name: str = name, target: str = target
            ) -> None:
                await set_alias(connection, name, target, org_id=self._org_id, origin=COMMAND)

            before = {"target": present[name]} if name in present else None
            steps.append(
                Step(action="update" if before else "create", kind="alias", name=name,
                     before=before, after={"target": target}, place=f"aliases.{name}", work=work)
            )  # fmt: skip
        return steps

    async def _removals(self, connection: asyncpg.Connection) -> list[Step]:
        if not self._prune:
            return []
        steps: list[Step] = []
        if not isinstance(self._wanted.aliases, msgspec.UnsetType):
            rows = await list_aliases(connection, org_id=self._org_id)
            gone = [row["name"] for row in rows if row["name"] not in self._wanted.aliases]
            steps += [self._removal("alias", name, "aliases") for name in gone]
        for kind, section in (("vendor", "vendors"), ("workspace", "workspaces")):
            if getattr(self._wanted, section) is UNSET:
                continue
            mentioned = {part.name for part in self._listed(section)}
            names = list(self._workspaces)
            if kind == "vendor":
                rows = await list_vendors(connection, org_id=self._org_id)
                names = [row["name"] for row in rows if not row["is_simulator"]]
            steps += [self._removal(kind, n, section) for n in names if n not in mentioned]
        return steps

    def _removal(self, kind: str, name: str, place: str) -> Step:
        async def work(connection: asyncpg.Connection) -> None:
            if kind == "alias":
                await remove_alias(connection, name, org_id=self._org_id, origin=COMMAND)
            elif kind == "vendor":
                await remove_row(connection, name, org_id=self._org_id, origin=COMMAND)
            else:
                workspace_id = self._workspaces.pop(name)
                await connection.execute(_QUERIES["archive_workspace"], workspace_id)
                await self._record(
                    connection,
                    "workspace.delete",
                    "workspace",
                    workspace_id,
                    before={"name": name},
                    after=None,
                )

        return Step(action="delete", kind=kind, name=name, before={"name": name}, after=None,
                    place=place, work=work)  # fmt: skip

    # limits

    async def _limit_steps(self, connection: asyncpg.Connection) -> list[Step]:
        rows = {(r["kind"], r["subject_id"]): r for r in await list_limits(connection)}
        subjects: list[tuple[str, Any, Limits, str]] = []
        if isinstance(self._wanted.org, Limits):
            subjects.append(("org", self._org_id, self._wanted.org, "org"))
        subjects += [
            (
                "workspace",
                self._workspaces[part.name],
                Limits(limit=part.limit),
                f"workspaces[{at}]",
            )
            for at, part in enumerate(self._listed("workspaces"))
        ]
        steps = []
        for kind, subject_id, wanted, place in subjects:
            row = rows.get((kind, str(subject_id)), {})
            changes, before, after = self._limit_changes(wanted, row, place)
            if not changes:
                continue

            async def work(
                connection: asyncpg.Connection,
                subject: str = f"{kind}:{subject_id}",
                changes: list[LimitChange] = changes,
            ) -> None:
                await set_limits(connection, subject, changes, is_embedded=self._is_embedded)

            steps.append(
                Step(action="update", kind="limit", name=f"{kind}:{subject_id}", before=before,
                     after=after, place=place, work=work, is_late=True)
            )  # fmt: skip
        return steps

    def _limit_changes(
        self, wanted: Limits, row: Mapping[str, Any], place: str
    ) -> tuple[list[LimitChange], dict[str, Any], dict[str, Any]]:
        """Return what has to change, what is there and what will be."""
        changes: list[LimitChange] = []
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        columns = {"limit": "calls_a_month", "rate": "rate", "concurrency": "concurrency"}
        for name, column in columns.items():
            value = getattr(wanted, name)
            if value is UNSET:
                continue
            if name == "rate" and value is not None:
                try:
                    value = parse_rate(value, field=name)
                except BadArgument as error:
                    raise self._source.refusal(error.message, f"{place}.rate") from error
            shown = str(value) if name == "rate" and value is not None else value
            if row.get(name) != shown:
                before[name], after[name] = row.get(name), shown
                changes.append(LimitChange(name=column, value=value))
        return changes, before, after

    # details

    def _listed(self, section: str) -> list[Any]:
        parts = getattr(self._wanted, section)
        return [] if parts is UNSET else parts

    async def _record(
        self,
        connection: asyncpg.Connection,
        action: str,
        kind: str,
        target_id: uuid.UUID | None,
        *,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> None:
        await record(
            connection, COMMAND, action, org_id=self._org_id, target_kind=kind,
            target_id=str(target_id), before=before, after=after,
        )  # fmt: skip
