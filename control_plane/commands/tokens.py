"""Tokens that clients call with, and how much they, and those they belong to, may call."""

import time
from typing import Any, Final

import asyncpg
import click

from control_plane import output
from control_plane.audit_log import COMMAND
from control_plane.commands.common import (
    command,
    kaixu,
    on_database,
    show,
)
from control_plane.database import DatabasePlace
from control_plane.errors import BadArgument
from control_plane.settings import (
    parse_list,
    parse_token_life,
)
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
from gateway.auth.token import generate
from gateway.ids import IdMaker

LIMIT_COLUMNS: Final = ("kind", "subject_id", "limit", "rate", "concurrency")


@kaixu.group()
def token() -> None:
    """Tokens that clients call with."""


@kaixu.group()
def limit() -> None:
    """Limits on tokens, users, workspaces and the org."""


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
    created = on_database(
        place, lambda connection: create_token(connection, new, ids=IdMaker(time.time))
    )
    if not as_json:
        expiry = output.text(created["expires_at"])
        output.note(f"Token {created['id']}, until {expiry}; it is shown this once:")
    show(created, as_json, created["token"])


@command(token, "list")
def token_list(*, place: DatabasePlace, as_json: bool) -> None:
    """List the tokens, as far as a person may see them."""
    rows = on_database(place, list_tokens)
    columns = ("id", "hint", "name", "state", "limit", "models", "expires_at")
    show(rows, as_json, output.table(rows, columns, empty="There is no token."))


@command(token, "revoke")
@click.argument("token_id", metavar="ID", required=False)
@click.option("--all", "every", is_flag=True, help="Every token that there is, in place of one.")
def token_revoke(*, place: DatabasePlace, as_json: bool, token_id: str | None, every: bool) -> None:
    """Revoke a token now, open streams included, and print the receipt."""
    if every == (token_id is not None):
        raise BadArgument("Name a token, or say --all.", field="all" if every else "token-id")
    if every:
        told = on_database(
            place,
            lambda connection: revoke_every_token(
                connection, origin=COMMAND, is_embedded=place.is_embedded
            ),
        )
        lines = [f"{told['revoked']} tokens are revoked."]
        if told["receipt"] is not None:
            lines.append(_receipt_text({"token_id": "every token", **told["receipt"]}))
        show(told, as_json, "\n".join(lines))
        return
    assert token_id is not None, "it is one or the other"

    async def revoke(connection: asyncpg.Connection) -> dict[str, Any]:
        return await revoke_token(connection, token_id, is_embedded=place.is_embedded)

    receipt = on_database(place, revoke)
    show(receipt, as_json, _receipt_text(receipt))


@command(token, "generate")
def token_generate(*, place: DatabasePlace, as_json: bool) -> None:
    """Print a well-formed token that is registered nowhere, for KAIXU_GATE_TOKEN."""
    del place
    made = generate()
    show({"token": made}, as_json, made)


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
    row = on_database(
        place,
        lambda connection: set_limits(connection, subject, changes, is_embedded=place.is_embedded),
    )
    show(row, as_json, output.table([row], LIMIT_COLUMNS, empty=""))


@command(limit, "list")
def limit_list(*, place: DatabasePlace, as_json: bool) -> None:
    """List who has limits, and which."""
    rows = on_database(place, list_limits)
    show(rows, as_json, output.table(rows, LIMIT_COLUMNS, empty="There is no limit."))


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
