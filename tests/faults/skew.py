"""Two releases at once on one schema: the one before this, taken from the history, and this one."""

import asyncio
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from tests.faults.machine import Machine
from tests.faults.results import CODE, PROJECT
from tests.faults.trial import Trial
from tests.faults.world import World

BOTH_SECONDS: Final = (0.5, 1.0)  # of load on each pair of releases
COMMAND_SECONDS_MAX: Final = 60.0
COMMITS_MAX: Final = 50  # are looked at
SCHEMA: Final = "control_plane/schema"

# A commit to take instead of the one before the last change to what runs.
FROM: Final = "KAIXU_SKEW_FROM"


def _git(*arguments: str, to: Path | None = None) -> str | None:
    """Return what git prints, or None where it fails; written `to` a file, nothing."""
    if shutil.which("git") is None:
        return None
    output = [] if to is None else ["--output", str(to)]
    done = subprocess.run(
        ["git", "-C", str(PROJECT), *arguments[:1], *output, *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def commit_before() -> str | None:
    """Return the newest commit before the last that changed what runs, or None without a history.

    One whose schema was changed since, and not only added to, was never to be run beside this one.
    """
    if named := os.environ.get(FROM):
        return _git("rev-parse", "--verify", "--quiet", named)
    last = _git("log", "-1", "--first-parent", "--format=%H", "--", *CODE)
    before = last and _git("log", f"-{COMMITS_MAX}", "--first-parent", "--format=%H", f"{last}~1")
    for commit in (before or "").split():
        changed = _git(
            "diff", "--name-only", "--no-renames", "--diff-filter=DM", commit, "--", SCHEMA
        )
        if changed == "":
            return commit
    return None


def no_history(_: World | None = None) -> str:
    """Return why there is no release before this one, or nothing."""
    return "" if commit_before() else "it takes the project's git history"


def unpack(commit: str, folder: Path) -> Path:
    """Write what ran at a commit into a new folder there, and return that."""
    archive = folder / f"{commit}.tar"
    assert _git("archive", commit, "gateway", "control_plane", to=archive) is not None
    code = folder / commit
    with tarfile.open(archive) as files:
        files.extractall(code, filter="data")
    archive.unlink()
    return code


async def version_skew(trial: Trial) -> None:
    """Take machines back to the release before, and forth again, some by kill -9, under load.

    Who is killed leaves its journal to the other release.
    """
    commit = commit_before()
    assert commit is not None
    before = await asyncio.to_thread(unpack, commit, trial.world.folder)
    trial.note(f"beside {commit[:7]}")
    first, second = trial.world.machines
    for machine, code, kill in (
        (second, before, False),
        (first, before, True),
        (second, None, True),
        (first, None, False),
    ):
        await _restart(trial, machine, code=code, kill=kill)
        streams = [await trial.watch(one) for one in trial.world.machines]
        await trial.last(*BOTH_SECONDS)
        for stream in streams:
            await trial.revoke(stream)
    shutil.rmtree(before)


async def _restart(trial: Trial, machine: Machine, *, code: Path | None, kill: bool) -> None:
    """Restart a machine on another release; None: on this one."""
    if kill:
        await asyncio.to_thread(machine.kill_all)
    else:
        status = await machine.terminate()
        trial.verdict.blame("other", status != 0, f"SIGTERM: exit code {status}")
    machine.code = code
    await machine.start()
    found = await asyncio.to_thread(machine.code_found)
    expected = PROJECT if code is None else code
    trial.verdict.blame("other", found != expected, f"{machine.name} runs {found}, not {expected}")
