"""Workloads: what is sent has just the size that the tables name."""

import json

import pytest

from benchmarks.workloads import (
    FAST_STREAMS,
    IDE,
    MANY_STREAMS_LEAST,
    MANY_STREAMS_MOST,
    SLOW_STREAMS,
    SMALL,
    TLS_CALLS,
    Workload,
    many_streams,
    store_of,
    streams_most,
)

ALL = (SMALL, IDE, FAST_STREAMS, SLOW_STREAMS, TLS_CALLS, store_of(10))


@pytest.mark.parametrize("workload", ALL, ids=lambda workload: workload.name)
def test_a_body_is_json_of_its_exact_size_that_names_the_alias(workload: Workload) -> None:
    body = workload.body()
    assert len(body) == workload.body_bytes
    read = json.loads(body)
    assert read["model"] == workload.model
    assert read.get("stream", False) is workload.is_stream
    assert "stream_options" not in read  # asking for usage is left to the gateway


def test_an_ides_call_names_its_model_last() -> None:
    assert list(json.loads(IDE.body()))[-1] == "model"
    assert next(iter(json.loads(SMALL.body()))) == "model"


def test_many_streams_outlast_the_window_in_which_they_are_measured() -> None:
    workload = many_streams(MANY_STREAMS_MOST, is_quick=False)
    events = int(workload.answer[1:].partition("x")[0])
    assert events > workload.ramp_seconds + workload.warm_seconds + workload.seconds


def test_the_pace_of_a_workload_is_that_of_all_its_streams() -> None:
    assert FAST_STREAMS.events_per_second == 12_800
    assert SLOW_STREAMS.events_per_second == 10_000
    assert many_streams(9_500, is_quick=True).events_per_second == 9_500
    assert SMALL.events_per_second is None


def test_the_descriptors_bound_the_streams() -> None:
    assert streams_most(20_000) == MANY_STREAMS_MOST
    assert streams_most(10_500) == 5_000
    assert streams_most(1_024) == MANY_STREAMS_LEAST
