"""Running it: all of it on this machine, the gateway alone, the control plane alone."""

import asyncio
import os
import sys
from typing import Final

import click

from control_plane import output
from control_plane.commands.common import (
    command,
    kaixu,
    make_data_dir,
    on_database,
    show,
)
from control_plane.database import DatabasePlace
from control_plane.local import run_up
from control_plane.local_facts import Ready, UpOptions
from control_plane.local_plane import COMMAND as CONTROL_PLANE
from control_plane.local_plane import SECRETS as CONTROL_SECRETS
from control_plane.local_plane import keep_secrets, with_files
from control_plane.migrate import load_migrations, migrate

PORT_MAX: Final = 65_535
WORKERS_MAX: Final = 256
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
        make_data_dir(place)
    applied = on_database(place, migrate, migrated=False)
    document = {"applied": applied, "schema": load_migrations()[-1].name}
    show(document, as_json, "\n".join(applied) or "Nothing to do.")


@command(kaixu, "gateway")
def gateway_command(*, place: DatabasePlace, as_json: bool) -> None:
    """Run the gateway alone, by its own settings: KAIXU_GATEWAY_DATABASE_URL and others."""
    del as_json  # it says in JSON that it is ready
    hidden = {*OWNERS_SETTINGS, *with_files(VENDOR_KEYS), *with_files(CONTROL_SECRETS)}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    if "KAIXU_JOURNAL_DIR" not in environment:
        make_data_dir(place)
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
        make_data_dir(place)
        environment |= keep_secrets(place.data_dir, environment)
    sys.stdout.flush()
    os.execve(CONTROL_PLANE[0], list(CONTROL_PLANE), environment)  # noqa: S606


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
