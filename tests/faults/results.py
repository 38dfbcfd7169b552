"""What runs told, kept by seed and by what the gateway was then; and the table of it."""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

PROJECT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = PROJECT / "build" / "faults.jsonl"
CODE: Final = ("gateway", "control_plane/schema")
COLUMNS: Final = (
    "fault", "runs", "failed", "calls", "kills", "at rest", "lost", "double", "over limit",
    "unusable rest", "revocation p50/p99/max ms", "recovery p50/max s",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of one fault."""

    fault: str
    seed: int
    code: str  # digest of what ran
    at: float  # Unix seconds
    calls: int
    whole: int
    tallied: int
    rows: int
    interrupted: int
    kills: int  # moments
    faulty: dict[str, int]  # what was not as it has to be
    explained: list[str] = field(default_factory=list)
    revocations: list[float] = field(default_factory=list)  # seconds, of live workers
    cut_off: list[float] = field(default_factory=list)  # the same, of workers cut off
    killed: int = 0  # processes, by SIGKILL
    killed_at_rest: int = 0  # of these, without load
    receipts: list[float] = field(default_factory=list)  # seconds
    notes: list[str] = field(default_factory=list)  # figures of this fault's own
    recovery_seconds: float = 0.0
    settle_seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return bool(self.faulty)

    @property
    def replay(self) -> str:
        """The command that runs it again."""
        return f'make faults ARGS="--seed {self.seed} --fault {self.fault}"'


def digest_of_code() -> str:
    """Return a digest of the gateway as it is: results are about that."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((PROJECT / folder).rglob("*")):
            if path.suffix in {".py", ".sql"}:
                digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def keep(result: Result, *, path: Path = RESULTS) -> None:
    """Add a result to the file."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def keep_log(result: Result, log: Path, *, folder: Path = RESULTS.parent) -> None:
    """Keep what a machine logged in a run that failed."""
    shutil.copy(log, folder / f"faults-{result.fault}-{result.seed}-{log.parent.name}.log")


def kept(*, code: str | None = None, path: Path = RESULTS) -> list[Result]:
    """Return the results in the file, of one state of the code if it is named."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    results = [Result(**json.loads(line)) for line in lines]
    return [result for result in results if code is None or result.code == code]


def percentile(values: Iterable[float], part: float) -> float:
    """Return the value that `part` of all values don't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def table(results: Sequence[Result], *, order: Sequence[str]) -> str:
    """Return the table of all results, a line for each fault."""
    by_fault: defaultdict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_fault[result.fault].append(result)
    lines: list[Sequence[Any]] = [COLUMNS]
    lines += [_line(name, by_fault[name]) for name in order if name in by_fault]
    if len(by_fault) > 1:
        lines.append(_line("all", [*results]))
    widths = [max(len(str(line[at])) for line in lines) for at in range(len(COLUMNS))]
    text = [
        "  ".join(f"{cell!s:{'<' if at == 0 else '>'}{widths[at]}}" for at, cell in enumerate(line))
        for line in lines
    ]
    return "\n".join(text)


def _line(name: str, results: Sequence[Result]) -> Sequence[Any]:
    def total(count: str) -> int:
        return sum(result.faulty.get(count, 0) for result in results)

    revocations = [1000 * s for result in results for s in result.revocations]
    recoveries = [result.recovery_seconds for result in results]
    held = "/".join(f"{percentile(revocations, part):.0f}" for part in (0.5, 0.99, 1))
    return (
        name,
        len(results),
        sum(result.failed for result in results),
        sum(result.calls for result in results),
        sum(result.killed for result in results),
        sum(result.killed_at_rest for result in results),
        total("lost"),
        total("double"),
        total("over_limit"),
        total("unusable"),
        held if revocations else "-",
        f"{percentile(recoveries, 0.5):.1f}/{max(recoveries):.1f}",
    )
