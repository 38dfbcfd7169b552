import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metering.usage import Usage
from gateway.metrics import (
    FAMILIES,
    SERIES_MAX,
    MachineMetrics,
    Metrics,
    Series,
    decode_snapshot,
    encode_snapshot,
)

USAGE = Usage(
    input_tokens=10,
    cache_read_tokens=3,
    output_tokens=7,
    reasoning_tokens=2,
    flags=("total_differs",),
    source="vendor",
)


def finish(metrics: Metrics, *, usage: Usage = USAGE, vendor: str = "openai") -> None:
    metrics.call_finished(
        vendor=vendor,
        endpoint="chat.completions",
        status="complete",
        ttfb_seconds=0.2,
        duration_seconds=2.0,
        usage=usage,
    )


def sent(metrics: Metrics) -> dict[str, list[Series]]:
    """Return the numbers as the supervisor gets them."""
    return decode_snapshot(encode_snapshot(metrics.snapshot()))


def samples(machine: MachineMetrics) -> dict[str, float]:
    """Return name and labels → value, as a scraper reads them."""
    told = {}
    for family in text_string_to_metric_families(machine.exposition().decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            told[f"{sample.name}{{{labels}}}"] = sample.value
    return told


def test_a_call_is_counted_in_every_family_that_it_concerns() -> None:
    metrics, machine = Metrics(version="1.2"), MachineMetrics()
    finish(metrics)
    metrics.refused("monthly_limit")
    metrics.watch("kaixu_streams_open", lambda: 1)
    machine.update("0.1", sent(metrics))
    told = samples(machine)
    call = "endpoint=chat.completions,vendor=openai"
    expected = {
        "kaixu_requests_total{endpoint=chat.completions,status=complete,vendor=openai}": 1,
        f"kaixu_tokens_total{{class=input,{call}}}": 10,
        f"kaixu_tokens_total{{class=cache_read,{call}}}": 3,
        f"kaixu_tokens_total{{class=output,{call}}}": 5,
        f"kaixu_tokens_total{{class=reasoning,{call}}}": 2,
        f"kaixu_time_to_first_byte_seconds_count{{{call}}}": 1,
        f"kaixu_time_to_first_byte_seconds_sum{{{call}}}": 0.2,
        "kaixu_time_to_first_byte_seconds_bucket"
        "{endpoint=chat.completions,le=0.1,vendor=openai}": 0,
        "kaixu_time_to_first_byte_seconds_bucket"
        "{endpoint=chat.completions,le=0.25,vendor=openai}": 1,
        "kaixu_time_to_first_byte_seconds_bucket"
        "{endpoint=chat.completions,le=+Inf,vendor=openai}": 1,
        f"kaixu_request_duration_seconds_sum{{{call}}}": 2.0,
        "kaixu_usage_flags_total{flag=total_differs}": 1,
        "kaixu_refusals_total{reason=monthly_limit}": 1,
        "kaixu_streams_open{}": 1,
        "kaixu_build_info{version=1.2}": 1,
    }
    assert {name: told[name] for name in expected} == expected
    assert not [name for name in told if name.startswith("kaixu_usage_unknown")]


def test_usage_that_is_not_known_is_counted_as_such() -> None:
    metrics, machine = Metrics(version="1"), MachineMetrics()
    finish(metrics, usage=Usage())
    machine.update("0.1", sent(metrics))
    name = "kaixu_usage_unknown_total{endpoint=chat.completions,source=none,vendor=openai}"
    assert samples(machine)[name] == 1


@pytest.mark.parametrize("status", ["vendor_error", "vendor_broke"])
def test_a_vendor_s_failure_is_counted(status: str) -> None:
    metrics, machine = Metrics(version="1"), MachineMetrics()
    metrics.call_finished(
        vendor="openai",
        endpoint="chat.completions",
        status=status,
        ttfb_seconds=None,
        duration_seconds=1.0,
        usage=Usage(),
    )
    machine.update("0.1", sent(metrics))
    assert samples(machine)[f"kaixu_vendor_errors_total{{kind={status},vendor=openai}}"] == 1


def test_a_machine_tells_the_sum_of_its_workers() -> None:
    one, other, machine = Metrics(version="1"), Metrics(version="1"), MachineMetrics()
    finish(one)
    finish(other)
    finish(other)
    one.watch("kaixu_ledger_lag_seconds", lambda: 3.0)
    other.watch("kaixu_ledger_lag_seconds", lambda: 5.0)
    one.watch("kaixu_lease_remaining_seconds", lambda: 14.0)
    other.watch("kaixu_lease_remaining_seconds", lambda: 9.0)
    one.set_connections_open(4)
    other.set_connections_open(2)
    machine.update("0.1", sent(one))
    machine.update("1.1", sent(other))
    told = samples(machine)
    requests = "kaixu_requests_total{endpoint=chat.completions,status=complete,vendor=openai}"
    assert told[requests] == 3
    assert told["kaixu_connections_open{}"] == 6
    assert told["kaixu_ledger_lag_seconds{}"] == 5
    assert told["kaixu_lease_remaining_seconds{}"] == 9
    assert told["kaixu_build_info{version=1}"] == 1


def test_a_worker_s_death_takes_its_gauges_and_leaves_its_counters() -> None:
    metrics, machine = Metrics(version="1"), MachineMetrics()
    finish(metrics)
    metrics.set_connections_open(4)
    machine.update("0.1", sent(metrics))
    machine.retire("0.1")
    machine.retire("never seen")
    next_one = Metrics(version="1")
    finish(next_one)
    machine.update("0.2", sent(next_one))
    told = samples(machine)
    requests = "kaixu_requests_total{endpoint=chat.completions,status=complete,vendor=openai}"
    assert told[requests] == 2
    buckets = "kaixu_request_duration_seconds_count{endpoint=chat.completions,vendor=openai}"
    assert told[buckets] == 2
    assert told["kaixu_connections_open{}"] == 0


def test_what_another_release_counts_is_left_out() -> None:
    machine = MachineMetrics()
    machine.update(
        "0.1",
        {
            "kaixu_from_the_future": [Series((), 1)],
            "kaixu_requests": [Series(("too", "few"), 1)],
            "kaixu_revocation_delay_seconds": [Series((), 1.0, (1, 2))],
        },
    )
    assert samples(machine) == {}


def test_a_gauge_that_is_not_known_is_left_out() -> None:
    metrics = Metrics(version="1")
    metrics.watch("kaixu_ledger_lag_seconds", lambda: None)
    assert "kaixu_ledger_lag_seconds" not in metrics.snapshot()


def test_label_sets_have_a_bound() -> None:
    metrics = Metrics(version="1")
    for number in range(SERIES_MAX + 50):
        finish(metrics, vendor=f"vendor-{number}")
        metrics.vendor_error(f"vendor-{number}", "broke")
    told = metrics.snapshot()
    assert len(told["kaixu_requests"]) == SERIES_MAX + 1
    assert len(told["kaixu_vendor_errors"]) == SERIES_MAX + 1
    assert sum(series.value for series in told["kaixu_requests"]) == SERIES_MAX + 50


def test_names_follow_the_conventions() -> None:
    for name, family in FAMILIES.items():
        assert name == family.name
        assert name.startswith("kaixu_")
        assert not name.endswith("_total")
        assert family.help.endswith(".")
        assert "token_id" not in family.labels
        assert bool(family.bounds) == (family.kind == "histogram")


def test_a_call_costs_a_few_microseconds_to_count() -> None:
    metrics = Metrics(version="1")
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(2000):
            finish(metrics)
        best = min(best, (time.perf_counter() - start) / 2000)
    assert best < 10e-6  # 1.2 µs measured; the machine may be busy
