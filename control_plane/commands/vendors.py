"""Vendors that the gateway calls, names for their models, and the key that opens their keys."""

import asyncio
import os
from pathlib import Path
from typing import Any

import asyncpg
import click

from control_plane import output
from control_plane.audit_log import COMMAND, record
from control_plane.commands.common import (
    allowed_hosts,
    command,
    kaixu,
    on_database,
    read_key,
    show,
)
from control_plane.database import DatabasePlace
from control_plane.errors import BadArgument, Refused
from control_plane.files import write_private
from control_plane.settings import (
    parse_list,
)
from control_plane.tenancy.aliases import list_aliases, remove_alias, set_alias
from control_plane.tenancy.aws_environment import aws_key
from control_plane.tenancy.vendor_presets import with_preset
from control_plane.tenancy.vendors import (
    NewVendor,
    add_vendor,
    check_vendor,
    list_vendors,
    remove_vendor,
    rotate_vendor,
)
from control_plane.vault_rotation import reseal, rotate
from gateway.vendors.seal import keygen


@kaixu.group()
def vendor() -> None:
    """Vendors that the gateway calls."""


@kaixu.group()
def alias() -> None:
    """Names that clients may use for a vendor's model."""


@kaixu.group()
def vault() -> None:
    """The key that opens vendor keys."""


@command(vendor, "add")
@click.argument("name")
@click.option("--preset", help="The known vendor that it is [default: the one of its name].")
@click.option(
    "--kind",
    help="How it is called: openai, anthropic, gemini, cohere, ollama, azure, bedrock, vertex.",
)
@click.option("--base-url", help="As one gives it to the SDK of that kind.")
@click.option("--key-file", help="A file with its key; - for stdin. Bedrock: else AWS_… is read.")
@click.option("--private", is_flag=True, help="Allow http and private addresses.")
@click.option("--default", "is_default", is_flag=True, help="For models that nobody claims.")
@click.option("--models", help="Globs of the models that it takes, with commas between.")
@click.option(
    "--usage-unasked/--usage-asked",
    default=None,
    help="Whether its streams report usage without being asked.",
)
@click.option("--replace", is_flag=True, help="Take the place of the vendor of this name.")
def vendor_add(
    *,
    place: DatabasePlace,
    as_json: bool,
    name: str,
    preset: str | None,
    kind: str | None,
    base_url: str | None,
    key_file: str | None,
    private: bool,
    is_default: bool,
    models: str | None,
    usage_unasked: bool | None,
    replace: bool,
) -> None:
    """Add a vendor; its key is sealed, so that only gateways can open it.

    A known vendor's name says how and where it is called: openai, anthropic, gemini, mistral, groq,
    deepseek, xai, openrouter, cerebras, perplexity, together, fireworks, cohere, voyage,
    huggingface, zai, alibaba, vertex; with a base URL of their own azure, bedrock; on this machine
    and without a key ollama, ollama-native, vllm, lmstudio.
    """
    key = read_key(key_file) if key_file else aws_key(os.environ, kind or preset or name)
    said = NewVendor(
        name=name,
        kind=kind or "",
        base_url=base_url or "",
        key=key,
        is_private=private,
        is_default=is_default,
        models=parse_list(models, field="models"),
    )
    new = with_preset(said, preset=preset, usage_unasked=usage_unasked)
    allowed = allowed_hosts()
    check_vendor(new, allowed_hosts=allowed)

    async def add(connection: asyncpg.Connection) -> dict[str, Any]:
        return await add_vendor(connection, new, replace=replace, allowed_hosts=allowed)

    added = on_database(place, add)
    show(added, as_json, f"{name} is called at {added['base_url']}.")


@command(vendor, "list")
def vendor_list(*, place: DatabasePlace, as_json: bool) -> None:
    """List the vendors, without their keys."""
    rows = on_database(place, list_vendors)
    columns = ("name", "kind", "base_url", "is_default", "models", "is_simulator", "key_version")
    show(rows, as_json, output.table(rows, columns, empty="There is no vendor."))


@command(vendor, "remove")
@click.argument("name")
def vendor_remove(*, place: DatabasePlace, as_json: bool, name: str) -> None:
    """Remove a vendor and forget its key."""
    removed = on_database(
        place,
        lambda connection: remove_vendor(connection, name, is_embedded=place.is_embedded),
    )
    show(removed, as_json, f"{name} is removed.")


@command(vendor, "rotate")
@click.argument("name")
@click.option("--key-file", required=True, help="A file with its new key; - for stdin.")
def vendor_rotate(*, place: DatabasePlace, as_json: bool, name: str, key_file: str) -> None:
    """Give a vendor a new key; calls that are open go on with the old one."""
    key = read_key(key_file)
    rotated = on_database(place, lambda connection: rotate_vendor(connection, name, key))
    show(rotated, as_json, f"{name} has key version {rotated['key_version']}.")


@command(alias, "set")
@click.argument("name")
@click.argument("target", metavar="VENDOR/MODEL")
def alias_set(*, place: DatabasePlace, as_json: bool, name: str, target: str) -> None:
    """Let a name stand for a vendor's model."""
    made = on_database(place, lambda connection: set_alias(connection, name, target))
    show(made, as_json, f"{name} leads to {target}.")


@command(alias, "list")
def alias_list(*, place: DatabasePlace, as_json: bool) -> None:
    """List the aliases."""
    rows = on_database(place, list_aliases)
    text = output.table(rows, ("name", "vendor", "model"), empty="There is no alias.")
    show(rows, as_json, text)


@command(alias, "remove")
@click.argument("name")
def alias_remove(*, place: DatabasePlace, as_json: bool, name: str) -> None:
    """Forget an alias."""
    on_database(place, lambda connection: remove_alias(connection, name))
    show({"name": name, "removed": True}, as_json, f"{name} is removed.")


@command(vault, "keygen")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="A new file.")
def vault_keygen(*, place: DatabasePlace, as_json: bool, out: Path | None) -> None:
    """Make a key pair; the private key is for KAIXU_VAULT_KEY or KAIXU_VAULT_KEY_FILE."""
    del place
    pair = keygen()
    if out is None:
        if not as_json:
            output.note(f"The public key is {pair.public}; the private key, for gateways alone:")
        document = {"private_key": pair.private, "public_key": pair.public}
        show(document, as_json, pair.private)
        return
    if out.exists():
        raise Refused(f"{out} exists: a key that is overwritten is lost.", field="out")
    try:
        write_private(out, pair.private + "\n")
    except OSError as error:
        raise BadArgument(f"{out} can't be written: {error.strerror}.", field="out") from error
    text = f"{out} has the private key; the public key is {pair.public}."
    show({"path": str(out), "public_key": pair.public}, as_json, text)


@command(vault, "rotate")
def vault_rotate(*, place: DatabasePlace, as_json: bool) -> None:
    """Make a new key pair and seal every vendor key to it, while calls go on."""
    told = asyncio.run(rotate(place, os.environ))
    on_database(place, lambda connection: _record_vault(connection, "vault.rotate", told))
    _print_resealed(told, as_json)


@command(vault, "reseal")
def vault_reseal(*, place: DatabasePlace, as_json: bool) -> None:
    """Seal every vendor key to the first of the gateways' private keys."""
    told = asyncio.run(reseal(place, os.environ))
    on_database(place, lambda connection: _record_vault(connection, "vault.reseal", told))
    _print_resealed(told, as_json)


async def _record_vault(connection: asyncpg.Connection, action: str, told: dict[str, Any]) -> None:
    """Tell the audit log what became of the vendor keys; a process of the gateway's did it."""
    after = {**told, "failed": [one["name"] for one in told["failed"]]}
    async with connection.transaction():
        await record(
            connection, COMMAND, action, org_id=None, target_kind="vault",
            target_id=told["public_key"], after=after,
        )  # fmt: skip


def _print_resealed(told: dict[str, Any], as_json: bool) -> None:  # noqa: FBT001 - as _print
    show(told, as_json, f"{told['resealed']} vendor keys are sealed to {told['public_key']}.")
    if told["failed"]:
        names = ", ".join(f"{one['name']} ({one['problem']})" for one in told["failed"])
        raise Refused(f"Not sealed anew: {names}")
