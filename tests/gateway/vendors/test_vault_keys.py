import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from gateway.vendors import vault_keys
from gateway.vendors.seal import keygen
from gateway.vendors.vault_keys import KeysNotRead, VaultKeySource

NEW, OLD = keygen().private, keygen().private
CANARY = "canary-that-nobody-quotes"


def python(code: str) -> VaultKeySource:
    return VaultKeySource(command=(sys.executable, "-c", code))


async def test_a_file_is_read_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    source = VaultKeySource(path=path)
    path.write_text(OLD + "\n")
    assert await source.read() == (OLD,)
    path.write_text(f"{NEW}\n{OLD}\n")
    assert await source.read() == (NEW, OLD)


async def test_a_command_tells_the_keys() -> None:
    assert await python(f"print('{NEW}'); print('{OLD}')").read() == (NEW, OLD)


def test_without_a_file_or_a_command_nothing_can_change() -> None:
    assert not VaultKeySource().can_change


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        (f"print('{CANARY}')", "not a vault key"),
        ("print('\\xff')", "not a vault key"),
        ("", "0 keys"),
        (f"print('{NEW} {OLD} {NEW}')", "3 keys"),
        ("import sys\nwhile True: sys.stdout.write('x' * 65536)", "far more"),
        ("import time; time.sleep(60)", "did not end within"),
    ],
    ids=["exit code", "other text", "bytes", "nothing", "three", "endless", "hanging"],
)
async def test_what_a_command_tells_wrong_is_a_problem_that_quotes_nothing(
    monkeypatch: pytest.MonkeyPatch, code: str, problem: str
) -> None:
    monkeypatch.setattr(vault_keys, "COMMAND_SECONDS_MAX", 1.0 if "sleep" in code else 20.0)
    with pytest.raises(KeysNotRead) as told:
        await python(code).read()
    assert problem in str(told.value)
    assert CANARY not in str(told.value)
    assert NEW not in str(told.value)


async def test_a_file_or_command_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    for source in (
        VaultKeySource(path=tmp_path / "none"),
        VaultKeySource(command=(str(tmp_path / "none"),)),
    ):
        with pytest.raises(KeysNotRead, match="No such file"):
            await source.read()


@pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
@pytest.mark.parametrize("leave", ["", "setsid "], ids=["its group", "a group of its own"])
def test_a_command_whose_child_holds_the_pipe_ends_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    loop: Callable[[], asyncio.AbstractEventLoop],
    leave: str,
) -> None:
    """The child is ended too, unless it has left: then the pipe alone is."""
    monkeypatch.setattr(vault_keys, "COMMAND_SECONDS_MAX", 0.5)
    told = tmp_path / "pid"
    script = f"{leave}sleep 60 & echo $! > {told}; echo {NEW}; wait"
    source = VaultKeySource(command=("sh", "-c", script))

    async def read() -> None:
        async with asyncio.timeout(20):
            with pytest.raises(KeysNotRead, match="did not end"):
                await source.read()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(read())
    child = int(told.read_text())
    if leave:
        os.kill(child, signal.SIGKILL)
        return
    while runs(child):
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether a process is there, and not as one that nobody has asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
