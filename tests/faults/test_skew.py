import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faults import skew

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, **files: str) -> str:
    """Commit files; `schema_0001="x"` is a file of the schema, `gateway="x"` one of the gateway."""
    for name, text in files.items():
        kind, _, rest = name.partition("_")
        path = (
            folder / ("control_plane/schema" if kind == "schema" else kind) / f"{rest or kind}.sql"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Change it")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(skew, "PROJECT", tmp_path)
    monkeypatch.delenv(skew.FROM, raising=False)
    git(tmp_path, "init", "-q")
    return tmp_path


def test_the_release_before_is_what_ran_before_the_last_change(project: Path) -> None:
    first = commit(project, gateway="1", schema_0001="1")
    commit(project, gateway="2", schema_0002="2")
    assert skew.commit_before() == first
    commit(project, docs="nothing that runs")
    assert skew.commit_before() == first


def test_a_schema_that_was_never_kept_is_passed_over(project: Path) -> None:
    first = commit(project, gateway="1", schema_0001="1")
    commit(project, gateway="2", schema_0002="2")
    commit(project, gateway="3", schema_0002="edited since")
    assert skew.commit_before() == first


def test_a_named_commit_goes_before(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = commit(project, gateway="1")
    commit(project, gateway="2")
    commit(project, gateway="3")
    monkeypatch.setenv(skew.FROM, first[:12])
    assert skew.commit_before() == first
    assert skew.no_history() == ""


def test_without_a_history_it_says_what_it_lacks(project: Path) -> None:
    commit(project, gateway="1")
    assert skew.commit_before() is None
    assert "history" in skew.no_history()


def test_what_is_unpacked_is_what_ran(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (project / "control_plane").mkdir()
    first = commit(project, gateway="1", schema_0001="1")
    commit(project, gateway="2")
    code = skew.unpack(first, tmp_path_factory.mktemp("code"))
    assert (code / "gateway" / "gateway.sql").read_text() == "1"
    assert (code / "control_plane" / "schema" / "0001.sql").read_text() == "1"
