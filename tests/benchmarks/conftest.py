"""The rig's programs, a vendor that runs, and a folder for ours."""

import datetime as dt
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.certificate import make_certificate
from benchmarks.install import Programs, build_programs
from benchmarks.measure import Bench, opened_bench
from benchmarks.processes import Placement
from benchmarks.systems import Around


@pytest.fixture(scope="session")
def programs() -> Programs:
    return build_programs()


@pytest.fixture
def bench(programs: Programs, tmp_path: Path) -> Iterator[Bench]:
    nothing = tmp_path / "no-certificate"
    plain = Programs(vendor=programs.vendor, load=programs.load, has_tls=False)
    with opened_bench(
        plain,
        placement=Placement.of_this_machine(),
        folder=tmp_path,
        certificate=(nothing, nothing, nothing),
    ) as opened:
        yield opened


@pytest.fixture
def tls_bench(programs: Programs, tmp_path: Path) -> Iterator[Bench]:
    if not programs.has_tls:
        pytest.skip("not installed: OpenSSL's headers")
    certificate = make_certificate(tmp_path, now=dt.datetime.now(dt.UTC))
    with opened_bench(
        programs,
        placement=Placement.of_this_machine(),
        folder=tmp_path,
        certificate=(certificate.authority, certificate.chain, certificate.key),
    ) as opened:
        yield opened


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's: PostgreSQL's own user has to get there.
    made = Path(tempfile.mkdtemp(prefix="kaixu-bench-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def around(bench: Bench, folder: Path) -> Around:
    return Around(vendor=bench.vendor, placement=bench.placement, folder=folder)
