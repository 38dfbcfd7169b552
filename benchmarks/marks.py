"""What calls leave behind beside rows in the ledger: lines in journals, counts in metrics."""

import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from benchmarks.processes import RigError
from gateway.metering.journal_files import KEPT_SUFFIX, SEGMENT_SUFFIX
from gateway.metering.journal_lines import CLOSE, scan

# Enough for the calls of one measurement, and not so much that reading it takes long.
JOURNAL_KEPT: Final = MappingProxyType({"KAIXU_JOURNAL_KEEP_BYTES": str(256 * 1024**2)})
READ_AGAIN_MAX: Final = 10  # a segment gets another name once it is shipped
SCRAPE_SECONDS_MAX: Final = 10.0
_REQUESTS: Final = re.compile(rb"^kaixu_requests_total\{[^\n]*\} ([0-9.e+]+)$", re.MULTILINE)


class _Row(msgspec.Struct):
    id: str


_decode_row: Final = msgspec.json.Decoder(_Row).decode


def closed_calls(journals: Path) -> dict[str, set[str]]:
    """Return the ids of calls that are closed in the journals of this folder, by worker.

    Raises RigError.
    """
    for _ in range(READ_AGAIN_MAX):
        try:
            return {
                folder.name: _closed_in(folder)
                for folder in journals.iterdir()
                if folder.is_dir() and not folder.name.startswith(".")
            }
        except FileNotFoundError:
            continue
    raise RigError(f"{journals} does not keep still")


def _closed_in(folder: Path) -> set[str]:
    paths = [path for path in folder.iterdir() if path.suffix in {SEGMENT_SUFFIX, KEPT_SUFFIX}]
    return {
        _decode_row(line.payload).id
        for path in paths
        for line in scan(path.read_bytes())
        if line.kind == CLOSE
    }


def calls_since(before: Mapping[str, set[str]], after: Mapping[str, set[str]]) -> dict[str, int]:
    """Return how many calls each worker has closed in between; of those that are still there.

    A worker's journal may have got the lines of one that has ended: these are not its own.
    """
    known = set[str]().union(*before.values())
    return {worker: len(calls - known) for worker, calls in after.items()}


def counted_requests(ops_url: str) -> int:
    """Return how many calls a gateway's metrics have counted since its start."""
    url = f"{ops_url.rstrip('/')}/metrics"
    with urllib.request.urlopen(url, timeout=SCRAPE_SECONDS_MAX) as answer:  # noqa: S310 - our own
        text = answer.read()
    return int(sum(float(found) for found in _REQUESTS.findall(text)))
