"""The rig in its smallest form: the C programs, one peer and ours, and the count of the ledger."""

import json
import os
import shutil
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import pytest

from benchmarks.__main__ import choose, main
from benchmarks.install import HERE, Programs
from benchmarks.measure import Bench, opened_bench
from benchmarks.ours import Ours, Setup
from benchmarks.processes import RigError
from benchmarks.systems import Around, Running
from benchmarks.workloads import FAST_STREAMS, SMALL, TLS_CALLS, Workload

pytestmark = [
    pytest.mark.journey,
    pytest.mark.skipif(shutil.which("cc") is None, reason="not installed: a C compiler"),
]

ENOUGH = 40  # calls


def test_the_load_client_knows_every_byte_of_the_vendors_answers(bench: Bench) -> None:
    small = bench.run(SMALL, bench.direct(), requests=ENOUGH)
    streams = bench.run(FAST_STREAMS.first_calls(), bench.direct(), requests=ENOUGH)
    for told in (small, streams):
        assert told.calls_sent == told.count("call") == ENOUGH
        assert told.first_bytes is not None
        assert told.latencies is not None
        assert 0 < told.latencies.p50 < 1e6
    assert streams.count("event") == 2 * ENOUGH


@pytest.mark.parametrize("changed", ["at length", "chatcmpl-bench", "total_tokens"])
def test_an_answer_that_was_changed_on_the_way_is_not_timed(
    bench: Bench, tmp_path: Path, changed: str
) -> None:
    garbled = tmp_path / "garbled"
    garbled.mkdir()
    for name in ("vendor.c", "answers.h"):
        text = (HERE / name).read_text()
        (garbled / name).write_text(text.replace(changed, changed.upper()))
    program = garbled / "vendor"
    subprocess.run(["cc", "-O1", "-o", program, garbled / "vendor.c"], check=True)
    programs = Programs(vendor=program, load=bench.programs.load, has_tls=False)
    with opened_bench(
        programs,
        placement=bench.placement,
        folder=garbled,
        certificate=(garbled, garbled, garbled),
    ) as other:
        running = Running(port=other.vendor.port, roots=())
        with pytest.raises(RigError, match="wrong answers: 4 bytes"):
            bench.run(SMALL, running, requests=4)


def test_a_system_that_falls_behind_the_clock_is_told(bench: Bench) -> None:
    slow = replace(FAST_STREAMS, connections=1, warm_seconds=0.0, seconds=0.2, answer="s2x50000")
    told = bench.run(slow, bench.direct(), rate=1000)
    assert not told.keeps_up(1000)
    assert told.facts["calls_late"] > 0


class Unknown(Workload):
    """Asks for a model that the vendor does not have."""

    def body(self) -> bytes:
        return b'{"model":"fast-unknown","messages":[]}'


def test_a_refusal_is_not_timed(bench: Bench) -> None:
    unknown = Unknown(**{one.name: getattr(SMALL, one.name) for one in fields(SMALL)})
    with pytest.raises(RigError, match=r"wrong answers: 4 status \(status 404\)"):
        bench.run(unknown, bench.direct(), requests=4)


def test_calls_that_the_ledger_does_not_have_are_told(bench: Bench, folder: Path) -> None:
    around = Around(vendor=bench.vendor, placement=bench.placement, folder=folder)
    ours = Ours()
    with ours.start(FAST_STREAMS, around) as running:
        assert running.check is not None
        made = bench.run(FAST_STREAMS.first_calls(), running, requests=ENOUGH).calls_sent
        running.check(made)
        with pytest.raises(RigError, match=f"{ENOUGH - 1} calls were made, {ENOUGH} are in"):
            running.check(made - 1)


def test_the_rig_measures_ours_beside_nginx(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    arguments = ["--quick", "--rounds", "1", "--systems", "ours,nginx", "--workloads", "a"]
    code = main([*arguments, "--json", str(result)])
    out, err = capsys.readouterr()
    if "nginx is left out" in err:
        pytest.skip(err)
    told = json.loads(result.read_text())
    assert code == 0, out
    measured = {one["system"]: one for one in told["measurements"]}
    assert set(measured) == {"ours", "nginx"}
    for one in measured.values():
        assert one["error"] is None
        assert 1 < one["cpu_us"] < 10_000
        assert 10 < one["per_second"] < 1e6
        if one["note"] is None:  # the machine was free enough
            latency = one["latency"]
            assert 0 < latency["p50"] <= latency["p99"] <= latency["p999"]
        assert 1 < one["memory_mib"] < 10_000
    assert measured["ours"]["ledger_calls"] > ENOUGH
    assert measured["ours"]["database_us"] > 0
    assert measured["nginx"]["database_us"] is None
    assert measured["ours"]["cpu_us"] > measured["nginx"]["cpu_us"] / 10
    assert out.count("**(a)**") == 1


def test_ours_keeps_its_tls_connections_to_the_vendor(tls_bench: Bench, folder: Path) -> None:
    around = Around(vendor=tls_bench.vendor, placement=tls_bench.placement, folder=folder)
    before = tls_bench.connections(by_tls=True)
    with Ours().start(TLS_CALLS, around) as running:
        assert running.check is not None
        calls = tls_bench.run(TLS_CALLS, running, requests=20 * ENOUGH).calls_sent
        running.check(calls)
    opened = tls_bench.connections(by_tls=True) - before
    assert 1 <= opened <= 2 * TLS_CALLS.connections < calls / 10


def test_ours_trusts_no_vendor_whose_authority_it_was_not_given(
    tls_bench: Bench, folder: Path
) -> None:
    around = Around(vendor=tls_bench.vendor, placement=tls_bench.placement, folder=folder)
    distrusting = Ours(Setup(settings={"SSL_CERT_FILE": os.devnull}))
    with (
        distrusting.start(TLS_CALLS, around) as running,
        pytest.raises(RigError, match=r"wrong answers: 1 status \(status 502\)"),
    ):
        tls_bench.run(TLS_CALLS, running, requests=1)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(SystemExit, match="--systems: give some of ours, nginx"):
        choose("ours,apache", ("ours", "nginx"), what="systems")
    assert choose(" nginx,ours", ("ours", "nginx"), what="systems") == ["ours", "nginx"]
