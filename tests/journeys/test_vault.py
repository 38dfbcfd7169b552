"""The vault key rotates while calls go on, and a gateway without it says so."""

import asyncio
import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.client import Answer, call, send
from tests.journeys.product import (
    KAIXU,
    START_SECONDS_MAX,
    STOP_SECONDS_MAX,
    CommandFailed,
    Product,
    Simulator,
    clean_environment,
    eventually,
)

pytestmark = pytest.mark.journey

ROTATIONS = 3


async def test_the_vault_key_rotates_under_load_without_a_failed_call(
    start: Callable[..., Product], simulator: Simulator
) -> None:
    product = start()
    for name in ("one", "two"):
        product.add_vendor(name, kind="openai", base_url=f"{simulator.url}/v1", key=f"key-{name}")
    path = product.data_dir / "vault.key"
    before = path.read_text()
    answers: list[Answer] = []
    done = asyncio.Event()

    async def client(number: int) -> None:
        while not done.is_set():
            prefix = "/" + ("one", "two")[number % 2]
            request = call(
                "openai", token=product.token, model="m", stream=False, words=1, prefix=prefix
            )
            answers.append(await send(product.url, request))

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(client(number))
        for _ in range(ROTATIONS):
            told = await product.kaixu_aside("vault", "rotate")
            assert (told["resealed"], told["failed"]) == (2, [])
            count = len(answers)
            while len(answers) < count + 40:  # noqa: ASYNC110 - calls after the rotation
                await asyncio.sleep(0.01)
        done.set()
    assert {answer.status for answer in answers} == {200}
    assert len(path.read_text().split()) == 2
    assert not set(path.read_text().split()) & set(before.split()), "the first key is gone"
    again = product.kaixu("vault", "reseal")
    assert (again["resealed"], again["unchanged"]) == (0, 2)
    # The private keys are the file's alone.
    log = product.log.read_text()
    assert not any(key in log for key in path.read_text().split())


def test_a_gateway_that_can_t_have_its_vault_key_is_alive_and_not_ready(
    start: Callable[..., Product], folder: Path, simulator: Simulator
) -> None:
    """Its command fails at first, as a key service does that is away."""
    first = start()
    first.add_vendor("one", kind="openai", base_url=f"{simulator.url}/v1", key="key-one")
    key = folder / "key"
    port = unused_tcp_port()
    gateway = subprocess.Popen(
        [str(KAIXU), "gateway", "--data", str(folder / "second")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment(
            folder,
            {
                "KAIXU_GATEWAY_DATABASE_URL": first.facts["database_url"],
                "KAIXU_MACHINE": "second",
                "KAIXU_PORT": "0",
                "KAIXU_OPS_PORT": str(port),
                "KAIXU_WORKERS": "1",
                "KAIXU_VAULT_KEY_COMMAND": f"cat {key}",
            },
        ),
    )
    try:
        eventually(
            lambda: ask(port, "readyz") == (503, ["worker 0: vault"]),
            seconds=START_SECONDS_MAX,
            what="/readyz says that the vault's key is missing",
        )
        assert ask(port, "healthz")[0] == 200
        key.write_text((first.data_dir / "vault.key").read_text())
        eventually(
            lambda: ask(port, "readyz") == (200, []), seconds=START_SECONDS_MAX, what="it is ready"
        )
    finally:
        gateway.terminate()
        gateway.wait(STOP_SECONDS_MAX)


def unused_tcp_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ask(port: int, path: str) -> tuple[int, list[str]]:
    """Return what the ops listener says: status, and what /readyz says is missing."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, body = error.code, error.read()
    except OSError:
        return 0, []
    return status, json.loads(body)["not_ready"] if path == "readyz" else []


def test_a_key_that_is_in_no_file_is_rotated_by_hand(
    start: Callable[..., Product],
) -> None:
    product = start()
    product.environment["KAIXU_VAULT_KEY_COMMAND"] = "true"
    with pytest.raises(CommandFailed) as told:
        product.kaixu("vault", "rotate")
    assert told.value.code == 2
    assert json.loads(told.value.stderr)["error"]["field"] == "KAIXU_VAULT_KEY_COMMAND"
