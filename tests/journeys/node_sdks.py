"""The scripts in `node/`: how the SDKs that they need are installed, and how they are played."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from tests.conftest import required

FOLDER: Final = Path(__file__).with_name("node")
NODE_MAJOR_MIN: Final = 20
INSTALL_SECONDS_MAX: Final = 300.0
SCRIPT_SECONDS_MAX: Final = 120.0
NPM_OPTIONS: Final = (
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--fetch-timeout=60000",
    "--fetch-retry-mintimeout=1000",
    "--fetch-retry-maxtimeout=5000",
)
# How npm says that there is no way to the registry.
NO_NETWORK: Final = ("EAI_AGAIN", "ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")

# A line of a script: the scenario, and its result or its error.
Result = Mapping[str, Any]


def unavailable(reason: str) -> NoReturn:
    """Skip; fail where KAIXU_REQUIRE names node."""
    if required("node"):
        pytest.fail(reason)
    pytest.skip(reason)


def node_with_sdks() -> str:
    """Return Node's program, once npm has installed the SDKs beside the scripts; skip without."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        unavailable("Node is not installed (node and npm)")
    asked = [program, "--version"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < NODE_MAJOR_MIN:
        unavailable(f"Node {NODE_MAJOR_MIN} or newer is needed, and {version} is installed")
    lock = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    stamp = FOLDER / "node_modules" / ".installed"  # written last, with what was installed
    if not stamp.exists() or stamp.read_text() != lock:
        done = subprocess.run(
            [npm, "ci", *NPM_OPTIONS],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS_MAX,
            check=False,
        )
        if done.returncode != 0 and any(word in done.stderr for word in NO_NETWORK):
            unavailable(f"npm does not reach its registry:\n{done.stderr[-1000:]}")
        assert done.returncode == 0, done.stderr
        stamp.write_text(lock)
    return program


def play(node: str, script: str, environment: Mapping[str, str]) -> dict[str, Result]:
    """Run a script; return the line of each scenario that it played."""
    done = subprocess.run(
        [node, f"{script}.mjs"],
        cwd=FOLDER,
        env={"PATH": os.defpath, **environment},
        capture_output=True,
        text=True,
        timeout=SCRIPT_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["scenario"]: line for line in lines}
