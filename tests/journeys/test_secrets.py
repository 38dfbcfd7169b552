"""Canary secrets go through everything, and are looked for everywhere, in every encoding."""

import asyncio
import base64
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import psutil
import pytest

from control_plane.postgres import wheel_binaries
from tests.journeys.client import FORMATS, Answer, call, fetch, send
from tests.journeys.product import Product, Simulator
from tests.journeys.test_people import ask

pytestmark = pytest.mark.journey

# With what URLs and JSON escape, so that encodings differ from the plain text.
VENDOR_KEY: Final = 'sk-canary/key+of=the&vendor"%41~0123456789abcdef'
ENVIRONMENT_KEY: Final = "sk-ant-canary-of-the-environment-0123456789abcdef"
OWN_FILES: Final = frozenset({"control.key", "jwt.secret"})  # where two secrets have to be
ROTATED_KEY: Final = "sk-canary-rotated-0123456789-ABCDEFGHIJKLMNOP"


def encodings(secret: str) -> Iterator[tuple[str, bytes]]:
    """Return every form in which a secret could lie about."""
    plain = secret.encode()
    yield "plain", plain
    yield "JSON", secret.replace("\\", "\\\\").replace('"', '\\"').encode()
    yield "JSON, slashes escaped", secret.replace('"', '\\"').replace("/", "\\/").encode()
    for name, safe in (("URL", ""), ("URL, slashes kept", "/")):
        yield name, quote(secret, safe=safe).encode()
    yield "hex", plain.hex().encode()
    yield "HEX", plain.hex().upper().encode()
    yield "bytes' repr", repr(plain)[2:-1].encode()
    for offset in range(3):  # wherever it begins in what was encoded
        encoded = base64.b64encode(b"\0" * offset + plain)
        inner = encoded[(0, 2, 3)[offset] : -4]
        yield f"base64 at {offset}", inner
        yield f"base64url at {offset}", inner.translate(bytes.maketrans(b"+/", b"-_"))
    yield "reversed", plain[::-1]
    yield "UTF-16", secret.encode("utf-16-le")


def found_in(data: bytes, secrets: Mapping[str, str]) -> list[str]:
    return [
        f"{name} ({encoding})"
        for name, secret in secrets.items()
        for encoding, form in encodings(secret)
        if form in data
    ]


def test_the_search_finds_what_it_looks_for() -> None:
    secrets = {"key": VENDOR_KEY}
    for _, form in encodings(VENDOR_KEY):
        assert found_in(b"before " + form + b" after", secrets)
    for offset in range(3):
        wrapped = base64.b64encode(b"x" * offset + VENDOR_KEY.encode() + b"and more")
        assert found_in(wrapped, secrets)
    assert not found_in(b"sk-canary", secrets)


async def use_everything(
    product: Product, simulator: Simulator, tokens: Mapping[str, str]
) -> list[Answer]:
    """Make every kind of call that handles secrets; return what was answered."""
    fine, revoked, limited = tokens["fine"], tokens["revoked"], tokens["limited"]
    answers = []
    models = ("gpt-4o", "sim-badkey", "sim-echokey", "sim-status-500", "sim-cut", "sim-reset")
    for format_name in FORMATS:
        for model in (*models, "sim-garbage", "sim-error", "sim-headers-400"):
            for token in (fine, revoked, limited):
                request = call(format_name, token=token, model=model, stream=True)
                answers.append(await send(product.url, request))
    for token in tokens.values():
        in_query = f"{product.url}/v1beta/models/gemini-2.5-flash:generateContent?key={token}"
        json_type = {"content-type": "application/json"}
        question = b'{"contents":[{"parts":[{"text":"hello"}]}]}'
        answers.append(await fetch(in_query, body=question, headers=json_type))
        answers.append(await fetch(f"{product.url}/nowhere/{token}", method="GET"))
        bearer = {"authorization": f"Bearer {token}", **json_type}
        chat = f"{product.url}/v1/chat/completions"
        bodies = (b"{", b'"' + token.encode() + b'"', b"[" + token.encode())
        paths = ("/v1/models", "/v1beta/models", "/sealed/v1/models")
        answers += [await fetch(chat, body=body, headers=bearer) for body in bodies]
        answers += [await fetch(product.url + path, method="GET", headers=bearer) for path in paths]
    requests = [
        call("openai", token=token, model=model, stream=False, prefix="/sealed")
        for model in models
        for token in tokens.values()
    ]
    answers += [await send(product.url, request) for request in requests]
    assert {line["key_sha256"] for line in simulator.tally() if "path" in line}
    return answers


async def test_no_secret_is_anywhere(start: Callable[..., Product], simulator: Simulator) -> None:
    product = start(environment={"ANTHROPIC_API_KEY": ENVIRONMENT_KEY})
    base_url = f"{simulator.url}/v1"
    product.add_vendor("sealed", kind="openai", base_url=base_url, key=VENDOR_KEY)
    made = {"fine": product.new_token("--name", "fine"), "revoked": product.new_token()}
    made["limited"] = product.new_token("--limit", "3")
    product.kaixu("token", "revoke", made["revoked"][1])
    tokens = {name: token for name, (token, _) in made.items()}
    # The real vendor is not to be called from here.
    anthropic = ("--kind", "anthropic", "--base-url", simulator.url, "--key-file", "-", "--private")
    product.kaixu("vendor", "add", "anthropic", *anthropic, "--replace", stdin=ENVIRONMENT_KEY)

    answers = await use_everything(product, simulator, {"first": product.token, **tokens})
    product.kaixu("vendor", "rotate", "sealed", "--key-file", "-", stdin=ROTATED_KEY)
    request = call("openai", token=product.token, model="m", stream=True, prefix="/sealed")
    answers.append(await send(product.url, request))
    assert answers[-1].is_whole
    assert any(answer.reason == "vendor_key" for answer in answers)

    secrets = {
        **people(product),
        "first token": product.token,
        **{f"token {name}": token for name, token in tokens.items()},
        "vendor key": VENDOR_KEY,
        "vendor key of the environment": ENVIRONMENT_KEY,
        "rotated vendor key": ROTATED_KEY,
    }
    look: dict[str, bytes] = {}
    for number, answer in enumerate(answers):
        look[f"answer {number}"] = repr(dict(answer.headers)).encode() + answer.body
    metrics = await fetch(f"{product.ops_url}/metrics", method="GET")
    assert metrics.body
    look["metrics"] = metrics.body + (await fetch(f"{product.ops_url}/readyz", method="GET")).body
    for command in (
        ("vendor", "list"), ("token", "list"), ("alias", "list"), ("usage",), ("doctor",),
    ):  # fmt: skip
        if command != ("doctor",) or has_command(product, "doctor"):
            look["kaixu " + " ".join(command)] = product.run(*command, "--json").encode()
    look["usage events"] = product.run("usage", "events").encode()
    look["database dump"] = dump(product)
    look |= command_lines(product)
    assert any(name.startswith("command line") for name in look)

    assert await asyncio.to_thread(product.stop) == 0
    look["stdout after the first line"] = rest_of_stdout(product)
    look["stderr"] = product.log.read_bytes()
    assert len(look["stderr"]) > 0
    for path in files(product.data_dir):
        if path.name in OWN_FILES:
            continue
        look[str(path.relative_to(product.data_dir))] = path.read_bytes()
    assert any("journal" in name for name in look)

    leaks = {name: leaked for name, data in look.items() if (leaked := found_in(data, secrets))}
    print(f"\nlooked for {len(secrets)} secrets in {len(look)} places")
    assert leaks == {}


def people(product: Product) -> dict[str, str]:
    """Sign the owner in and enrol a second factor; return every secret that this takes or makes."""
    secrets = {
        "control plane's key": (product.data_dir / "control.key").read_text().strip(),
        "key of sessions": (product.data_dir / "jwt.secret").read_text().strip(),
        "owner's password": str(product.facts["owner_password"]),
    }
    body = {"email": product.facts["owner_email"], "password": secrets["owner's password"]}
    status, session = ask(product, "POST", "/api/v1/sessions", body)
    assert status == 201
    secrets["session"] = session["access_token"]
    status, totp = ask(product, "POST", "/api/v1/me/totp", token=secrets["session"])
    assert status == 201
    secrets["seed of a second factor"] = totp["secret"]
    wrong = {**body, "totp": "000000", "password": "a wrong canary of a password"}
    assert ask(product, "POST", "/api/v1/sessions", wrong)[0] == 401
    assert ask(product, "POST", "/api/v1/sessions", {**body, "secret": 1})[0] == 400
    assert ask(product, "GET", "/api/v1/me", token=secrets["session"][:-2])[0] == 401
    return {**secrets, "wrong password": wrong["password"]}


def has_command(product: Product, name: str) -> bool:
    return re.search(rf"^\s+{name}\b", product.run_help(), re.MULTILINE) is not None


def dump(product: Product) -> bytes:
    """Return the whole database as SQL."""
    url = urlsplit(product.facts["database_url"])
    where = [
        "--host",
        url.hostname or "",
        "--port",
        str(url.port),
        "--username",
        url.username or "",
    ]
    done = subprocess.run(
        [str(wheel_binaries() / "pg_dump"), *where, "--dbname", url.path.lstrip("/")],
        env={"PGPASSWORD": url.password or "", "PATH": os.defpath},
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert b"usage_events" in done.stdout
    return done.stdout


def command_lines(product: Product) -> dict[str, bytes]:
    """Return what every process of the product shows: arguments; the gateway's environment."""
    shown = {}
    up = psutil.Process(product.process.pid)
    gateway = {process.pid for process in product.gateway_processes()}
    assert len(gateway) >= 3
    for process in [up, *up.children(recursive=True)]:
        proc = Path(f"/proc/{process.pid}")
        shown[f"command line of {process.pid}"] = (proc / "cmdline").read_bytes()
        if process.pid in gateway:
            shown[f"environment of {process.pid}"] = (proc / "environ").read_bytes()
    return shown


def rest_of_stdout(product: Product) -> bytes:
    """Return what `up` printed after the line with the first token."""
    assert product.process.stdout is not None
    return product.process.stdout.read().encode()


def files(folder: Path) -> Iterator[Path]:
    """Return every file of the data folder: journals, keys, and PostgreSQL's own."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path
