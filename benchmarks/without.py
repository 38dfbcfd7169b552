"""Our gateway without one of its features: `python -m benchmarks.without FEATURE FOLDER [up ...]`.

The product has no such switch. This starts its own programs and puts something that does nothing in
the place of one part, where the parts are wired: `kaixu up`, which starts the supervisor by this,
which starts the workers by this. A part that is no longer where it was is an error, and each worker
writes to FOLDER, at its end, how often what stands in was asked: a feature that is merely believed
to be off is not measured.
"""

import importlib
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from gateway.metering.journal import Journal
from gateway.metering.journal_files import Files
from gateway.metering.journal_shipping import Batch
from gateway.metering.ledger import Ledger
from gateway.metering.meter import Meter, NullMeter
from gateway.metrics import Metrics
from gateway.proxy.routing import Target
from gateway.worker_link import FDS_VARIABLE

NOTHING: Final = "nothing"  # to leave out: the same way of starting, with everything on
COUNT_SUFFIX: Final = ".stood-in"
MARK: Final = (b"x-without", b"header-policy")  # what an answer has in the place of its headers

Seam = tuple[str, str]  # a module, and what is found in it by this name


class SeamMissing(Exception):
    """The product has no such part there any more: the rig has to be told where it is now."""


@dataclass(slots=True)
class Tally:
    """How often what stands in was asked."""

    count: int = 0


# ------------------------------------------------------------------------------- what stands in


def _memory_journal(tally: Tally) -> type[Journal]:
    """Rows wait for the ledger in memory; nothing of a call is written."""

    class MemoryJournal(Journal):
        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the journal's own
            super().__init__(*args, **kwargs)
            self._rows: deque[bytes] = deque()

        def open_call(
            self,
            call_id: str,  # noqa: ARG002 - as Journal
            row: bytes,  # noqa: ARG002
            *,
            admitted: float,  # noqa: ARG002
            block_ids: tuple[str, ...],  # noqa: ARG002
        ) -> None:
            tally.count += 1

        def close_call(self, call_id: str, row: bytes) -> None:  # noqa: ARG002
            self._rows.append(row)
            self.closed.set()

        def note_end(self, call_id: str, row: bytes) -> None:
            pass

        def unshipped_since(self) -> float | None:
            return None

        def read_unshipped(self, *, rows_max: int, bytes_max: int) -> Batch:  # noqa: ARG002
            rows = [row for row, _ in zip(self._rows, range(rows_max), strict=False)]
            return Batch(rows=rows, more=len(self._rows) > len(rows))

        def shipped(self, batch: Batch) -> None:
            for _ in batch.rows:
                self._rows.popleft()

    return MemoryJournal


def _unsynced_files(tally: Tally) -> type[Files]:
    """What was written is the kernel's to bring to the disk, whenever."""

    class UnsyncedFiles(Files):
        def sync(self, fd: int) -> None:  # noqa: ARG002
            tally.count += 1

    return UnsyncedFiles


def _silent_ledger(tally: Tally) -> type[Ledger]:
    """Rows are read from the journal and go nowhere."""

    class SilentLedger(Ledger):
        async def append(self, rows: Sequence[bytes]) -> int:
            tally.count += len(rows)
            return 0

    return SilentLedger


def _no_meter(tally: Tally) -> Callable[..., Meter]:
    """No answer is read."""

    def open_no_meter(*_: object, **__: object) -> Meter:
        tally.count += 1
        return NullMeter()

    return open_no_meter


def _silent_metrics(tally: Tally) -> type[Metrics]:
    """Calls are not counted."""

    class SilentMetrics(Metrics):
        def call_finished(self, **_: object) -> None:
            tally.count += 1

    return SilentMetrics


def _fixed_headers_up(tally: Tally) -> Callable[..., bytes]:
    """No header of the client's is looked at."""

    def fixed(target: Target, _: object, *, body_length: int | None) -> bytes:
        tally.count += 1
        length = b"" if body_length is None else b"content-length: %d\r\n" % body_length
        return target.head + b"content-type: application/json\r\n" + length

    return fixed


def _fixed_headers_down(_: Tally) -> Callable[..., list[tuple[bytes, bytes]]]:
    """No header of the vendor's is looked at."""
    return lambda _: [MARK]


STAND_INS: Final[Mapping[str, Mapping[Seam, Callable[[Tally], object]]]] = MappingProxyType(
    {
        NOTHING: {},
        "journal": {("gateway.app", "Journal"): _memory_journal},
        "journal-sync": {("gateway.metering.journal", "Files"): _unsynced_files},
        "ledger": {("gateway.app", "Ledger"): _silent_ledger},
        "metering": {("gateway.proxy.relay", "open_meter"): _no_meter},
        "metrics": {("gateway.app", "Metrics"): _silent_metrics},
        "header-policy": {
            ("gateway.proxy.preparation", "upstream_lines"): _fixed_headers_up,
            ("gateway.proxy.relay", "downstream_headers"): _fixed_headers_down,
        },
    }
)


# ---------------------------------------------------------------------------------- putting them in


def check_seams(feature: str) -> None:
    """Raise SeamMissing unless all parts that are replaced are where they were."""
    for seam in STAND_INS[feature]:
        _part(seam)


def put_in(feature: str) -> Tally:
    """Replace a feature's parts in this process; return how often what stands in is asked."""
    check_seams(feature)
    tally = Tally()
    for (module, name), make in STAND_INS[feature].items():
        setattr(importlib.import_module(module), name, make(tally))
    return tally


def counted(folder: Path) -> int:
    """Return how often it was asked in all workers that have ended, and forget it."""
    found = 0
    for path in folder.glob(f"*{COUNT_SUFFIX}"):
        found += int(path.read_text())
        path.unlink()
    return found


def command(feature: str, folder: Path) -> tuple[str, ...]:
    """Return how the product's programs are started without a feature."""
    return (sys.executable, "-P", "-m", "benchmarks.without", feature, str(folder))


def _part(seam: Seam) -> object:
    module, name = seam
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SeamMissing(f"{module} has no {name} to be replaced") from error


def _wrap(seam: Seam, **fixed: object) -> None:
    """Have a part made with some arguments of ours."""
    made = _part(seam)
    assert callable(made)
    module, name = seam
    setattr(
        importlib.import_module(module), name, lambda **arguments: made(**{**arguments, **fixed})
    )


# --------------------------------------------------------------------------------------- programs


def _up(start: tuple[str, ...], arguments: Sequence[str]) -> None:
    """Be `kaixu`, which starts the gateway by this."""
    from control_plane.cli import COMMANDS  # noqa: PLC0415 - the gateway's processes do without
    from control_plane.commands.common import kaixu  # noqa: PLC0415 - as above

    assert COMMANDS, "they are in `kaixu` now"

    _wrap(("control_plane.commands.running", "UpOptions"), gateway=start)
    kaixu(list(arguments))


def _gateway(feature: str, folder: Path, start: tuple[str, ...]) -> int:
    """Be the supervisor, which starts workers by this; or one of them."""
    from gateway import __main__ as program  # noqa: PLC0415

    if FDS_VARIABLE not in os.environ:  # noqa: TID251 - as the program itself
        _wrap(("gateway.supervisor", "Supervisor"), command=start)
        return program.main()
    tally = put_in(feature)
    code = program.main()
    (folder / f"{os.getpid()}{COUNT_SUFFIX}").write_text(str(tally.count))
    return code


def main(arguments: Sequence[str]) -> int:
    """Run a program of the product."""
    feature, folder, *others = arguments
    start = command(feature, Path(folder))
    if others:
        _up(start, others)
        return 0
    return _gateway(feature, Path(folder), start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
