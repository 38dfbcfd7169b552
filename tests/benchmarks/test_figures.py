"""Figures: percentiles, spreads over rounds, ratios between systems."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Latency, Spread, latency_of, percentile, ratio, read_samples, spread


def test_a_percentile_is_the_smallest_sample_that_enough_are_at_or_below() -> None:
    hundred = [float(number) for number in range(1, 101)]
    assert percentile(hundred, 0.5) == 50
    assert percentile(hundred, 0.99) == 99
    assert percentile(hundred, 0.999) == 100
    assert percentile([7.0], 0.5) == 7


@given(st.lists(st.integers(0, 1000), min_size=1), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_has_its_share_of_samples_at_or_below(
    samples: list[int], quantile: float
) -> None:
    ordered = sorted(samples)
    found = percentile(ordered, quantile)
    at_or_below = sum(one <= found for one in ordered)
    below = sum(one < found for one in ordered)
    assert at_or_below >= quantile * len(ordered) - 1e-6
    assert below < quantile * len(ordered) + 1e-6


def test_latency_is_told_in_microseconds() -> None:
    assert latency_of(range(1000, 1_000_001, 1000)) == Latency(p50=500, p99=990, p999=999)
    assert latency_of([]) is None


def test_what_a_system_adds_is_taken_percentile_by_percentile() -> None:
    added = Latency(p50=100, p99=300, p999=900).minus(Latency(p50=40, p99=100, p999=100))
    assert added == Latency(p50=60, p99=200, p999=800)


def test_samples_are_read_as_the_load_client_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    path.write_bytes(struct.pack("=3I", 1, 2, 2**32 - 1))
    assert list(read_samples(path)) == [1, 2, 2**32 - 1]


def test_a_spread_leaves_out_what_was_not_measured() -> None:
    assert spread([3.0, None, 1.0, 2.0]) == Spread(median=2, least=1, greatest=3, rounds=3)
    assert spread([None]) is None


def test_a_ratio_is_that_of_the_medians_with_the_rounds_as_its_spread() -> None:
    ours = {0: 10.0, 1: 20.0, 2: 30.0}
    theirs = {0: 20.0, 1: 40.0, 2: 30.0}
    assert ratio(ours, theirs) == Spread(median=1.5, least=1, greatest=2, rounds=3)


def test_a_round_that_only_one_has_counts_for_its_median_alone() -> None:
    found = ratio({0: 10.0}, {0: 20.0, 1: 60.0})
    assert found == Spread(median=4, least=2, greatest=4, rounds=1)


@pytest.mark.parametrize(("ours", "theirs"), [({}, {0: 1.0}), ({0: 1.0}, {}), ({0: 0.0}, {0: 1.0})])
def test_without_figures_there_is_no_ratio(
    ours: dict[int, float], theirs: dict[int, float]
) -> None:
    assert ratio(ours, theirs) is None
