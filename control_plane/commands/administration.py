"""People, orgs as a file says they are, and the log of who changed what."""

import os
import uuid
from pathlib import Path

import click

from control_plane import output
from control_plane.apply import Applier
from control_plane.apply_file import read_source
from control_plane.audit_verification import heads_text, parse_heads, read_heads, verify
from control_plane.commands.common import (
    allowed_hosts,
    command,
    kaixu,
    on_database,
    read_file,
    show,
)
from control_plane.database import DatabasePlace
from control_plane.errors import Refused
from control_plane.identity.account_rescue import list_accounts, reset_account
from control_plane.local_plane import find_control_keys


@kaixu.group()
def account() -> None:
    """People who sign in to the control plane."""


@kaixu.group()
def audit() -> None:
    """Who changed what."""


@command(account, "list")
def account_list(*, place: DatabasePlace, as_json: bool) -> None:
    """List the accounts of people."""
    rows = on_database(place, list_accounts)
    columns = ("email", "name", "is_operator", "totp", "created_at", "disabled_at")
    show(rows, as_json, output.table(rows, columns, empty="There is no account."))


@command(account, "reset")
@click.argument("email")
@click.option("--totp", "forget_totp", is_flag=True, help="Forget the second factor as well.")
def account_reset(*, place: DatabasePlace, as_json: bool, email: str, forget_totp: bool) -> None:
    """Give somebody who can't get in a new password, and print it: this once."""
    keys = find_control_keys(place.data_dir, os.environ)
    told = on_database(
        place,
        lambda connection: reset_account(connection, email, keys=keys, forget_totp=forget_totp),
    )
    if not as_json:
        output.note(f"{told['email']} has a new password; it is shown this once:")
    show(told, as_json, told["password"])


@command(kaixu, "apply")
@click.option(
    "-f",
    "--file",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="What there is to be, as YAML.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what differs: exit 1 where anything does.")
@click.option("--prune", is_flag=True, help="Remove what the file's lists do not have.")
def apply_command(
    *, place: DatabasePlace, as_json: bool, path: Path, dry_run: bool, prune: bool
) -> None:
    """Make an org, or the installation, as a file says."""
    applier = Applier(
        read_source(path),
        environment=os.environ,
        allowed_hosts=allowed_hosts(),
        is_embedded=place.is_embedded,
        prune=prune,
    )
    steps = on_database(place, lambda connection: applier.apply(connection, dry_run=dry_run))
    lines = [f"{one['action']} {one['kind']} {one['name']}" for one in steps]
    show({"changes": steps, "applied": not dry_run}, as_json, "\n".join(lines) or "All is so.")
    if dry_run and steps:
        raise Refused(f"{len(steps)} things differ from {path}.", code="drift")


@command(audit, "verify")
@click.option("--org", type=click.UUID, help="Of this org only.")
@click.option(
    "--head", type=click.Path(path_type=Path, dir_okay=False), help="Heads exported before."
)
def audit_verify(
    *, place: DatabasePlace, as_json: bool, org: uuid.UUID | None, head: Path | None
) -> None:
    """Take every hash of the audit log again: exit 1 where an entry is not as it was written."""
    heads = [] if head is None else parse_heads(read_file(head, field="head"))
    found = on_database(
        place,
        lambda connection: verify(connection, org_id=org, is_one=org is not None, heads=heads),
    )
    bad = "\n".join(
        f"{one['org_id'] or 'installation'} {one['ordinal']}: {one['problem']}"
        for one in found["bad"]
    )
    entries = sum(chain["entries"] for chain in found["chains"])
    show(found, as_json, bad or f"{entries:,} entries are as they were written.")
    if not found["ok"]:
        raise Refused("The audit log is not as it was written.", code="audit_broken")


@command(audit, "head")
@click.option("--org", type=click.UUID, help="Of this org only.")
def audit_head(*, place: DatabasePlace, as_json: bool, org: uuid.UUID | None) -> None:
    """Print how far each chain goes, to be kept elsewhere, for `audit verify --head`."""
    del as_json  # it is JSON
    heads = on_database(
        place, lambda connection: read_heads(connection, org_id=org, is_one=org is not None)
    )
    output.say(heads_text(heads).rstrip("\n"))
