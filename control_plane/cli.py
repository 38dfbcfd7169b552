"""The `kaixu` command: what an operator types, and what a script reads.

Each command parses its arguments, calls one function of the control plane and prints what it
returns: for people, or with --json as JSON. An error is one line on stderr, its kind the exit code:
1 refused, not found or failed, 2 a bad argument or setting, 3 the database can't be reached.
"""

import asyncio
import functools
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import asyncpg
import click

from control_plane import output
from control_plane.apply import Applier
from control_plane.apply_file import read_source
from control_plane.audit_log import COMMAND, record
from control_plane.audit_verification import heads_text, parse_heads, read_heads, verify
from control_plane.billing.feed import COLUMNS, Cursor, read_events
from control_plane.billing.usage import GROUPINGS, NAMED, report_usage
from control_plane.database import DatabasePlace, open_database
from control_plane.errors import BadArgument, ControlError, Refused
from control_plane.files import make_private, write_private
from control_plane.identity.account_rescue import list_accounts, reset_account
from control_plane.local import run_up
from control_plane.local_facts import Ready, UpOptions
from control_plane.local_plane import COMMAND as CONTROL_PLANE
from control_plane.local_plane import SECRETS as CONTROL_SECRETS
from control_plane.local_plane import find_control_keys, keep_secrets, with_files
from control_plane.migrate import load_migrations, migrate
from control_plane.settings import (
    SECRET_BYTES_MAX,
    decode_secret,
    default_data_dir,
    parse_list,
    parse_month,
    parse_token_life,
    read_secret,
    read_secret_file,
)
from control_plane.tenancy.aliases import list_aliases, remove_alias, set_alias
from control_plane.tenancy.aws_environment import aws_key
from control_plane.tenancy.limits import (
    list_limits,
    parse_changes,
    parse_concurrency,
    parse_rate,
    set_limits,
)
from control_plane.tenancy.revocation import revoke_every_token
from control_plane.tenancy.tokens import (
    NewToken,
    check_new_token,
    create_token,
    list_tokens,
    parse_networks,
    revoke_token,
)
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
from gateway.auth.token import generate
from gateway.ids import IdMaker
from gateway.vendors.seal import keygen

Result = TypeVar("Result")
PORT_MAX: Final = 65_535
WORKERS_MAX: Final = 256
EXIT_INTERRUPTED: Final = 130  # as shells say it

LIMIT_COLUMNS: Final = ("kind", "subject_id", "limit", "rate", "concurrency")
PORT: Final = click.IntRange(0, PORT_MAX)
# What the gateway never needs, and so never sees.
OWNERS_SETTINGS: Final = ("KAIXU_DATABASE_URL", "KAIXU_DATABASE_URL_FILE", "KAIXU_GATE_TOKEN")
VENDOR_KEYS: Final = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")
# What the control plane never needs, and so never sees.
GATEWAY_SECRETS: Final = (
    "KAIXU_VAULT_KEY",
    "KAIXU_GATEWAY_DATABASE_URL",
    "KAIXU_FEED_DATABASE_URL",
)


def command(group: click.Group, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command that gets --data and --json, as `place` and `as_json`."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, data: Path | None, **arguments: Any) -> None:  # noqa: ANN401 - click's values
            function(place=_place(data), **arguments)

        help_data = (
            "The data folder [default: ~/.local/share/kaixu]; KAIXU_DATABASE_URL goes before."
        )
        run_with_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(run)
        path = click.Path(path_type=Path, file_okay=False)
        with_both = click.option("--data", type=path, help=help_data)(run_with_json)
        group.command(name)(with_both)
        return function

    return register


@click.group()
@click.version_option(package_name="kaixu-gateway")
def kaixu() -> None:
    """KAIxU: a gateway between your team's IDEs and the LLM vendors."""


@kaixu.group()
def vendor() -> None:
    """Vendors that the gateway calls."""


@kaixu.group()
def alias() -> None:
    """Names that clients may use for a vendor's model."""


@kaixu.group()
def token() -> None:
    """Tokens that clients call with."""


@kaixu.group()
def limit() -> None:
    """Limits on tokens, users, workspaces and the org."""


@kaixu.group()
def account() -> None:
    """People who sign in to the control plane."""


@kaixu.group()
def vault() -> None:
    """The key that opens vendor keys."""


@kaixu.group()
def audit() -> None:
    """Who changed what."""


# ------------------------------------------------------------------------------------------ running


@command(kaixu, "up")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where clients call.")
@click.option("--port", type=PORT, default=8080, show_default=True, help="0: any free one.")
@click.option("--ops-port", type=PORT, default=9090, show_default=True, help="Health and metrics.")
@click.option("--admin-port", type=PORT, default=8081, show_default=True, help="The control plane.")
@click.option("--workers", type=click.IntRange(1, WORKERS_MAX), help="[default: one a core]")
def up(
    *,
    place: DatabasePlace,
    as_json: bool,
    host: str,
    port: int,
    ops_port: int,
    admin_port: int,
    workers: int | None,
) -> None:
    """Run everything on this machine, until Ctrl-C."""
    options = UpOptions(
        place=place,
        host=host,
        port=port,
        ops_port=ops_port,
        admin_port=admin_port,
        workers=workers,
        environment=dict(os.environ),
    )

    def announce(ready: Ready) -> None:
        output.say(output.json_text(ready.document()) if as_json else _welcome(ready))

    asyncio.run(run_up(options, announce=announce, note=output.note))


@command(kaixu, "migrate")
def migrate_command(*, place: DatabasePlace, as_json: bool) -> None:
    """Bring the database up to this release's schema."""
    if place.is_embedded:
        _make_data_dir(place)
    applied = _run(place, migrate, migrated=False)
    document = {"applied": applied, "schema": load_migrations()[-1].name}
    _print(document, as_json, "\n".join(applied) or "Nothing to do.")


@command(kaixu, "gateway")
def gateway_command(*, place: DatabasePlace, as_json: bool) -> None:
    """Run the gateway alone, by its own settings: KAIXU_GATEWAY_DATABASE_URL and others."""
    del as_json  # it says in JSON that it is ready
    hidden = {*OWNERS_SETTINGS, *with_files(VENDOR_KEYS), *with_files(CONTROL_SECRETS)}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    if "KAIXU_JOURNAL_DIR" not in environment:
        _make_data_dir(place)
        environment["KAIXU_JOURNAL_DIR"] = str(place.data_dir / "journal")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", "gateway"], environment)  # noqa: S606


@command(kaixu, "control-plane")
def control_plane_command(*, place: DatabasePlace, as_json: bool) -> None:
    """Run the control plane alone, by its own settings: KAIXU_CONTROL_DATABASE_URL and others."""
    del as_json  # it says in JSON that it is ready
    hidden = {*OWNERS_SETTINGS, *with_files((*VENDOR_KEYS, *GATEWAY_SECRETS))}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    if environment.get("KAIXU_ENV") != "production":  # there, a secret that is missing is a mistake
        _make_data_dir(place)
        environment |= keep_secrets(place.data_dir, environment)
    sys.stdout.flush()
    os.execve(CONTROL_PLANE[0], list(CONTROL_PLANE), environment)  # noqa: S606


# ------------------------------------------------------------------------------------------ vendors


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
    key = _read_key(key_file) if key_file else aws_key(os.environ, kind or preset or name)
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
    allowed = _allowed_hosts()
    check_vendor(new, allowed_hosts=allowed)

    async def add(connection: asyncpg.Connection) -> dict[str, Any]:
        return await add_vendor(connection, new, replace=replace, allowed_hosts=allowed)

    added = _run(place, add)
    _print(added, as_json, f"{name} is called at {added['base_url']}.")


@command(vendor, "list")
def vendor_list(*, place: DatabasePlace, as_json: bool) -> None:
    """List the vendors, without their keys."""
    rows = _run(place, list_vendors)
    columns = ("name", "kind", "base_url", "is_default", "models", "is_simulator", "key_version")
    _print(rows, as_json, output.table(rows, columns, empty="There is no vendor."))


@command(vendor, "remove")
@click.argument("name")
def vendor_remove(*, place: DatabasePlace, as_json: bool, name: str) -> None:
    """Remove a vendor and forget its key."""
    removed = _run(
        place,
        lambda connection: remove_vendor(connection, name, is_embedded=place.is_embedded),
    )
    _print(removed, as_json, f"{name} is removed.")


@command(vendor, "rotate")
@click.argument("name")
@click.option("--key-file", required=True, help="A file with its new key; - for stdin.")
def vendor_rotate(*, place: DatabasePlace, as_json: bool, name: str, key_file: str) -> None:
    """Give a vendor a new key; calls that are open go on with the old one."""
    key = _read_key(key_file)
    rotated = _run(place, lambda connection: rotate_vendor(connection, name, key))
    _print(rotated, as_json, f"{name} has key version {rotated['key_version']}.")


@command(alias, "set")
@click.argument("name")
@click.argument("target", metavar="VENDOR/MODEL")
def alias_set(*, place: DatabasePlace, as_json: bool, name: str, target: str) -> None:
    """Let a name stand for a vendor's model."""
    made = _run(place, lambda connection: set_alias(connection, name, target))
    _print(made, as_json, f"{name} leads to {target}.")


@command(alias, "list")
def alias_list(*, place: DatabasePlace, as_json: bool) -> None:
    """List the aliases."""
    rows = _run(place, list_aliases)
    text = output.table(rows, ("name", "vendor", "model"), empty="There is no alias.")
    _print(rows, as_json, text)


@command(alias, "remove")
@click.argument("name")
def alias_remove(*, place: DatabasePlace, as_json: bool, name: str) -> None:
    """Forget an alias."""
    _run(place, lambda connection: remove_alias(connection, name))
    _print({"name": name, "removed": True}, as_json, f"{name} is removed.")


# ------------------------------------------------------------------------------------------- tokens


@command(token, "create")
@click.option("--name", default="", help="What people call it.")
@click.option("--limit", type=int, help="Calls a month.")
@click.option("--rate", help="Calls that may begin within a sliding window, as in 60/1m.")
@click.option("--concurrency", help="Calls that may be open at once.")
@click.option("--expires", default="30d", show_default=True, help="As 90s, 15m, 12h or 30d.")
@click.option("--models", help="Globs of the models that it may use, with commas between.")
@click.option("--vendors", help="Names of the vendors that it may call, with commas between.")
@click.option("--addresses", help="Networks that it may be used from, as 203.0.113.0/24.")
@click.option(
    "--scope",
    default="calls",
    show_default=True,
    help="Some of calls, usage:read, and batches (in spite of a limit or a list of models).",
)
def token_create(
    *,
    place: DatabasePlace,
    as_json: bool,
    name: str,
    limit: int | None,
    rate: str | None,
    concurrency: str | None,
    expires: str,
    models: str | None,
    vendors: str | None,
    addresses: str | None,
    scope: str,
) -> None:
    """Create a token and print it: this once."""
    new = NewToken(
        text=generate(),
        name=name,
        life=parse_token_life(expires, field="expires"),
        limit=limit,
        rate=None if rate is None else parse_rate(rate, field="rate"),
        concurrency=(
            None if concurrency is None else parse_concurrency(concurrency, field="concurrency")
        ),
        models=parse_list(models, field="models"),
        vendors=parse_list(vendors, field="vendors"),
        addresses=(
            None
            if addresses is None
            else parse_networks(parse_list(addresses, field="addresses") or (), field="addresses")
        ),
        scopes=sorted(set(parse_list(scope, field="scope") or ())),
    )
    check_new_token(new)
    created = _run(place, lambda connection: create_token(connection, new, ids=IdMaker(time.time)))
    if not as_json:
        expiry = output.text(created["expires_at"])
        output.note(f"Token {created['id']}, until {expiry}; it is shown this once:")
    _print(created, as_json, created["token"])


@command(token, "list")
def token_list(*, place: DatabasePlace, as_json: bool) -> None:
    """List the tokens, as far as a person may see them."""
    rows = _run(place, list_tokens)
    columns = ("id", "hint", "name", "state", "limit", "models", "expires_at")
    _print(rows, as_json, output.table(rows, columns, empty="There is no token."))


@command(token, "revoke")
@click.argument("token_id", metavar="ID", required=False)
@click.option("--all", "every", is_flag=True, help="Every token that there is, in place of one.")
def token_revoke(*, place: DatabasePlace, as_json: bool, token_id: str | None, every: bool) -> None:
    """Revoke a token now, open streams included, and print the receipt."""
    if every == (token_id is not None):
        raise BadArgument("Name a token, or say --all.", field="all" if every else "token-id")
    if every:
        told = _run(
            place,
            lambda connection: revoke_every_token(
                connection, origin=COMMAND, is_embedded=place.is_embedded
            ),
        )
        lines = [f"{told['revoked']} tokens are revoked."]
        if told["receipt"] is not None:
            lines.append(_receipt_text({"token_id": "every token", **told["receipt"]}))
        _print(told, as_json, "\n".join(lines))
        return
    assert token_id is not None, "it is one or the other"

    async def revoke(connection: asyncpg.Connection) -> dict[str, Any]:
        return await revoke_token(connection, token_id, is_embedded=place.is_embedded)

    receipt = _run(place, revoke)
    _print(receipt, as_json, _receipt_text(receipt))


@command(token, "generate")
def token_generate(*, place: DatabasePlace, as_json: bool) -> None:
    """Print a well-formed token that is registered nowhere, for KAIXU_GATE_TOKEN."""
    del place
    made = generate()
    _print({"token": made}, as_json, made)


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
        _print(document, as_json, pair.private)
        return
    if out.exists():
        raise Refused(f"{out} exists: a key that is overwritten is lost.", field="out")
    try:
        write_private(out, pair.private + "\n")
    except OSError as error:
        raise BadArgument(f"{out} can't be written: {error.strerror}.", field="out") from error
    text = f"{out} has the private key; the public key is {pair.public}."
    _print({"path": str(out), "public_key": pair.public}, as_json, text)


@command(vault, "rotate")
def vault_rotate(*, place: DatabasePlace, as_json: bool) -> None:
    """Make a new key pair and seal every vendor key to it, while calls go on."""
    told = asyncio.run(rotate(place, os.environ))
    _run(place, lambda connection: _record_vault(connection, "vault.rotate", told))
    _print_resealed(told, as_json)


@command(vault, "reseal")
def vault_reseal(*, place: DatabasePlace, as_json: bool) -> None:
    """Seal every vendor key to the first of the gateways' private keys."""
    told = asyncio.run(reseal(place, os.environ))
    _run(place, lambda connection: _record_vault(connection, "vault.reseal", told))
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
    _print(told, as_json, f"{told['resealed']} vendor keys are sealed to {told['public_key']}.")
    if told["failed"]:
        names = ", ".join(f"{one['name']} ({one['problem']})" for one in told["failed"])
        raise Refused(f"Not sealed anew: {names}")


# ----------------------------------------------------------------------------------------- accounts


@command(account, "list")
def account_list(*, place: DatabasePlace, as_json: bool) -> None:
    """List the accounts of people."""
    rows = _run(place, list_accounts)
    columns = ("email", "name", "is_operator", "totp", "created_at", "disabled_at")
    _print(rows, as_json, output.table(rows, columns, empty="There is no account."))


@command(account, "reset")
@click.argument("email")
@click.option("--totp", "forget_totp", is_flag=True, help="Forget the second factor as well.")
def account_reset(*, place: DatabasePlace, as_json: bool, email: str, forget_totp: bool) -> None:
    """Give somebody who can't get in a new password, and print it: this once."""
    keys = find_control_keys(place.data_dir, os.environ)
    told = _run(
        place,
        lambda connection: reset_account(connection, email, keys=keys, forget_totp=forget_totp),
    )
    if not as_json:
        output.note(f"{told['email']} has a new password; it is shown this once:")
    _print(told, as_json, told["password"])


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
        allowed_hosts=_allowed_hosts(),
        is_embedded=place.is_embedded,
        prune=prune,
    )
    steps = _run(place, lambda connection: applier.apply(connection, dry_run=dry_run))
    lines = [f"{one['action']} {one['kind']} {one['name']}" for one in steps]
    _print({"changes": steps, "applied": not dry_run}, as_json, "\n".join(lines) or "All is so.")
    if dry_run and steps:
        raise Refused(f"{len(steps)} things differ from {path}.", code="drift")


# -------------------------------------------------------------------------------------------- audit


@command(audit, "verify")
@click.option("--org", type=click.UUID, help="Of this org only.")
@click.option(
    "--head", type=click.Path(path_type=Path, dir_okay=False), help="Heads exported before."
)
def audit_verify(
    *, place: DatabasePlace, as_json: bool, org: uuid.UUID | None, head: Path | None
) -> None:
    """Take every hash of the audit log again: exit 1 where an entry is not as it was written."""
    heads = [] if head is None else parse_heads(_read_file(head, field="head"))
    found = _run(
        place,
        lambda connection: verify(connection, org_id=org, is_one=org is not None, heads=heads),
    )
    bad = "\n".join(
        f"{one['org_id'] or 'installation'} {one['ordinal']}: {one['problem']}"
        for one in found["bad"]
    )
    entries = sum(chain["entries"] for chain in found["chains"])
    _print(found, as_json, bad or f"{entries:,} entries are as they were written.")
    if not found["ok"]:
        raise Refused("The audit log is not as it was written.", code="audit_broken")


@command(audit, "head")
@click.option("--org", type=click.UUID, help="Of this org only.")
def audit_head(*, place: DatabasePlace, as_json: bool, org: uuid.UUID | None) -> None:
    """Print how far each chain goes, to be kept elsewhere, for `audit verify --head`."""
    del as_json  # it is JSON
    heads = _run(
        place, lambda connection: read_heads(connection, org_id=org, is_one=org is not None)
    )
    output.say(heads_text(heads).rstrip("\n"))


# ------------------------------------------------------------------------------------------- limits


@command(limit, "set")
@click.argument("subject")
@click.option("--limit", "calls_a_month", help="Calls a month, or none.")
@click.option("--rate", help="Calls within a sliding window, as in 60/1m, or none.")
@click.option("--concurrency", help="Calls that may be open at once, or none.")
def limit_set(
    *,
    place: DatabasePlace,
    as_json: bool,
    subject: str,
    calls_a_month: str | None,
    rate: str | None,
    concurrency: str | None,
) -> None:
    """Change limits of token:ID, user:ID, workspace:ID or org; they hold at once."""
    changes = parse_changes(calls_a_month=calls_a_month, rate=rate, concurrency=concurrency)
    row = _run(
        place,
        lambda connection: set_limits(connection, subject, changes, is_embedded=place.is_embedded),
    )
    _print(row, as_json, output.table([row], LIMIT_COLUMNS, empty=""))


@command(limit, "list")
def limit_list(*, place: DatabasePlace, as_json: bool) -> None:
    """List who has limits, and which."""
    rows = _run(place, list_limits)
    _print(rows, as_json, output.table(rows, LIMIT_COLUMNS, empty="There is no limit."))


# -------------------------------------------------------------------------------------------- usage


@kaixu.group(invoke_without_command=True)
@click.option("--month", help="As 2026-11 [default: this one].")
@click.option("--by", type=click.Choice(tuple(GROUPINGS)), default="token", show_default=True)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="The data folder.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def usage(
    context: click.Context, *, month: str | None, by: str, data: Path | None, as_json: bool
) -> None:
    """What was used in a month; `usage events` has every single call."""
    if context.invoked_subcommand is not None:
        context.obj = (data, as_json)
        return
    first_day = None if month is None else parse_month(month, field="month")
    report = _run(_place(data), lambda connection: report_usage(connection, month=first_day, by=by))
    label = (GROUPINGS[by], "name") if by in NAMED else (GROUPINGS[by],)
    sums = ("calls", "counted", "input_tokens", "cache_read_tokens", "cache_write_tokens")
    columns = (*label, *sums, "output_tokens", "reasoning_tokens")
    table = output.table(report["rows"], columns, empty=f"No calls in {report['month']}.")
    sealed = output.text(report["sealed_through"])
    _print(report, as_json, f"{table}\n\nEvery call up to {sealed} is in it.")


@command(usage, "events")
@click.option("--after", metavar="CURSOR", help="Go on after this event.")
@click.option("--format", "layout", type=click.Choice(["ndjson", "csv"]), default="ndjson")
def usage_events(*, place: DatabasePlace, as_json: bool, after: str | None, layout: str) -> None:
    """Print every event, one a line, in the order in which they became visible."""
    del as_json  # ndjson is JSON
    if after is not None:
        Cursor.parse(after)

    async def print_all(connection: asyncpg.Connection) -> None:
        if layout == "csv":
            output.say(output.csv_line(COLUMNS))
        async for event in read_events(connection, after=after):
            is_csv = layout == "csv"
            output.say(output.csv_line(event.values()) if is_csv else output.event_json(event))

    _run(place, print_all)


# ------------------------------------------------------------------------------------------ details


def _place(data: Path | None) -> DatabasePlace:
    if data is None:
        outer = click.get_current_context().find_object(tuple)
        data = outer[0] if outer is not None else None
    folder = default_data_dir(os.environ) if data is None else data
    return DatabasePlace(
        data_dir=folder.expanduser().absolute(), url=read_secret(os.environ, "KAIXU_DATABASE_URL")
    )


def _make_data_dir(place: DatabasePlace) -> None:
    try:
        make_private(place.data_dir)
    except OSError as error:
        message = f"{place.data_dir} can't be used: {error.strerror}."
        raise BadArgument(message, field="data") from error


def _run(
    place: DatabasePlace,
    work: Callable[[asyncpg.Connection], Awaitable[Result]],
    *,
    migrated: bool = True,
) -> Result:
    """Do one command's work on the database."""

    async def run() -> Result:
        async with open_database(place, migrated=migrated) as connection:
            return await work(connection)

    return asyncio.run(run())


def _print(document: object, as_json: bool, text: str) -> None:  # noqa: FBT001 - it reads well
    output.say(output.json_text(document) if as_json else text)


def _allowed_hosts() -> frozenset[str] | None:
    hosts = os.environ.get("KAIXU_VENDOR_HOSTS", "").lower()
    return frozenset(parse_list(hosts, field="KAIXU_VENDOR_HOSTS") or ()) if hosts else None


def _read_file(path: Path, *, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadArgument(f"{path} can't be read: {error.strerror}.", field=field) from error


def _read_key(path: str) -> str:
    if path == "-":
        content = sys.stdin.buffer.read(SECRET_BYTES_MAX + 1)
        return decode_secret(content, field="key-file")
    return read_secret_file(Path(path), field="key-file")


def _welcome(ready: Ready) -> str:
    """Return what a person reads when everything runs."""
    lines = [
        "",
        f"  Gateway   {ready.gateway_url}",
        f"  Ops       {ready.ops_url}",
        f"  Admin     {ready.admin_url or 'on other machines'}",
        f"  Data      {ready.data_dir}",
    ]
    if ready.token is not None:
        lines += [f"  Token     {ready.token}", "            (shown this once, good for 30 days)"]
    if ready.owner is not None:
        lines += [f"  Owner     {ready.owner.email}", f"  Password  {ready.owner.password}"]
        lines += ["            (shown this once)"]
    if ready.simulated:
        names = ", ".join(ready.simulated)
        lines += ["", f"  Simulated: {names}. The simulator stands in until there is a key, as"]
        lines += ["  OPENAI_API_KEY at the next start, or by `kaixu vendor add`."]
    model = "sim-slow-20-100" if "openai" in ready.simulated else "gpt-4o-mini"
    body = f'{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"Hello"}}]}}'
    curl = (
        f"curl -N {ready.gateway_url}/v1/chat/completions "
        f"-H 'Authorization: Bearer {ready.token or 'kxg_…'}' "
        f"-H 'Content-Type: application/json' -d '{body}'"
    )
    lines += ["", "  Try it:", "", curl, "", "  Ctrl-C stops it."]
    return "\n".join(lines)


def _receipt_text(receipt: dict[str, Any]) -> str:
    """Return a receipt as a person reads it."""
    whole = "on every worker" if receipt["complete"] else "but not every worker has confirmed"
    head = (
        f"Revoked {receipt['token_id']} at {output.text(receipt['committed_at'])}, {whole}: "
        f"{receipt['streams_cut']} streams cut, {receipt['took_ms']} ms."
    )
    lines = [head]
    for worker in receipt["workers"]:
        line = f"  {worker['machine']} {worker['worker_id']}: {worker['state']}"
        if worker["state"] != "confirmed":
            line += (
                f"; admits nothing after {output.text(worker['admission_stops_at'])}, "
                f"its streams end by {output.text(worker['streams_stop_at'])}"
            )
        lines.append(line)
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ errors


def main() -> NoReturn:
    """Run the command line, and exit."""
    as_json = "--json" in sys.argv[1:]
    try:
        code = kaixu.main(standalone_mode=False)
    except ControlError as error:
        code = _fail(error, as_json=as_json)
    except click.ClickException as error:
        code = _fail(_usage_error(error), as_json=as_json)
    except asyncpg.PostgresError as error:
        code = _fail(ControlError(f"The database says: {error}", code="database"), as_json=as_json)
    except (click.Abort, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has read enough
        _drop_output()
        code = 1
    except OSError as error:  # a full disk, a file that is not ours
        if error.filename is None:
            _drop_output()
        message = f"{error.filename or 'Input or output'}: {error.strerror or error}."
        code = _fail(ControlError(message, code="system"), as_json=as_json)
    sys.exit(code if isinstance(code, int) else 0)


def _drop_output() -> None:
    """Let what is still to be written go nowhere: it can't be."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: ControlError, *, as_json: bool) -> int:
    output.note(output.error_json(error) if as_json else f"kaixu: {error.message}")
    return error.exit_code


def _usage_error(error: click.ClickException) -> BadArgument:
    parameter = getattr(error, "param", None)
    field = None if parameter is None else str(parameter.name).replace("_", "-")
    return BadArgument(error.format_message(), field=field)
