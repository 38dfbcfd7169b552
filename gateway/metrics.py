"""What is counted: cheap to add to in a worker, summed over a machine's workers, told as text.

A worker adds to plain numbers. Only when someone asks does it make a `Snapshot` of them, which
crosses to the supervisor as JSON. There a `MachineMetrics` sums the last snapshots of all workers,
those that have died included, so that no counter ever goes back.

Labels are bounded: vendor and endpoint as the operator and the product name them, the word a call
ended with, a class of tokens. Never a token's id, never a text that a caller sent.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

SERIES_MAX: Final = 2_000  # label sets of one family in one worker; further ones count as "other"
OTHER: Final = "other"

# Answers of models begin within fractions of a second or after minutes.
_FIRST_BYTE_BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
_DURATION_BOUNDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_REVOCATION_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)


class Reported(Protocol):
    """What is counted of a call's usage. None: the vendor did not say."""

    @property
    def source(self) -> str:
        """Say whether the vendor told it: "vendor", "partial" or "none"."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What is doubtful about it."""

    @property
    def input_tokens(self) -> int | None:
        """Neither read from nor written to a cache."""

    @property
    def cache_read_tokens(self) -> int | None:
        """Read from a cache."""

    @property
    def cache_write_tokens(self) -> int | None:
        """Written to a cache."""

    @property
    def output_tokens(self) -> int | None:
        """Reasoning included."""

    @property
    def reasoning_tokens(self) -> int | None:
        """Of the output."""


# Words a call may end with that are about the vendor.
_VENDOR_FAILURES: Final = frozenset(("vendor_error", "vendor_broke"))

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "max", "min"]  # how gauges of several workers become one


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: its name without a counter's `_total`, and what it means."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # of a histogram's buckets, without the infinite one
    merge: Merge = "sum"


def _families(*families: Family) -> Mapping[str, Family]:
    return {family.name: family for family in families}


FAMILIES: Final = _families(
    Family(
        name="kaixu_requests",
        kind="counter",
        help="Calls that went to a vendor, by how they ended.",
        labels=("vendor", "endpoint", "status"),
    ),
    Family(
        name="kaixu_refusals",
        kind="counter",
        help="Requests that the gateway refused itself.",
        labels=("reason",),
    ),
    Family(
        name="kaixu_tokens",
        kind="counter",
        help="Tokens that vendors reported. The classes do not overlap.",
        labels=("vendor", "endpoint", "class"),
    ),
    Family(
        name="kaixu_time_to_first_byte_seconds",
        kind="histogram",
        help="From a request's arrival to the first byte of the vendor's answer.",
        labels=("vendor", "endpoint"),
        bounds=_FIRST_BYTE_BOUNDS,
    ),
    Family(
        name="kaixu_request_duration_seconds",
        kind="histogram",
        help="From a request's arrival to the end of its answer.",
        labels=("vendor", "endpoint"),
        bounds=_DURATION_BOUNDS,
    ),
    Family(
        name="kaixu_revocation_delay_seconds",
        kind="histogram",
        help="From a change's commit to the moment it held in a worker, by database time.",
        bounds=_REVOCATION_BOUNDS,
    ),
    Family(
        name="kaixu_usage_unknown",
        kind="counter",
        help="Calls whose vendor told no usage, or not all of it.",
        labels=("vendor", "endpoint", "source"),
    ),
    Family(
        name="kaixu_usage_flags",
        kind="counter",
        help="Doubts about reported usage.",
        labels=("flag",),
    ),
    Family(
        name="kaixu_vendor_errors",
        kind="counter",
        help="Failures on the vendor's side.",
        labels=("vendor", "kind"),
    ),
    Family(
        name="kaixu_client_errors",
        kind="counter",
        help="Connections that ended badly on the client's side.",
        labels=("kind",),
    ),
    Family(name="kaixu_streams_open", kind="gauge", help="Calls that are being answered."),
    Family(name="kaixu_connections_open", kind="gauge", help="Connections of clients."),
    Family(
        name="kaixu_ledger_lag_seconds",
        kind="gauge",
        help="Age of the oldest call whose row is not in the ledger yet, open ones included.",
        merge="max",
    ),
    Family(
        name="kaixu_lease_remaining_seconds",
        kind="gauge",
        help="For how long calls are admitted without hearing from the database.",
        merge="min",
    ),
    Family(name="kaixu_ledger_rows", kind="counter", help="Rows that went into the ledger."),
    Family(
        name="kaixu_ledger_rejected",
        kind="counter",
        help="Rows that the ledger could not take; each needs someone.",
    ),
    Family(
        name="kaixu_journal_full",
        kind="counter",
        help="Calls refused as there was no room to record.",
    ),
    Family(
        name="kaixu_feed_resets",
        kind="counter",
        help="Times a worker lost its place in the change log and looked everything up again.",
    ),
    Family(
        name="kaixu_build_info",
        kind="gauge",
        help="What runs here.",
        labels=("version",),
        merge="max",
    ),
    Family(
        name="kaixu_worker_restarts", kind="counter", help="Workers started in place of dead ones."
    ),
    Family(name="kaixu_workers_ready", kind="gauge", help="Workers that take calls."),
)


class Series(msgspec.Struct, array_like=True):
    """One label set of a family: a number, or a histogram's buckets (not cumulated) and sum."""

    labels: tuple[str, ...]
    value: float
    buckets: tuple[int, ...] = ()


Snapshot = dict[str, list[Series]]  # by family


class _Histogram:
    __slots__ = ("_bounds", "buckets", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.buckets[bisect_left(self._bounds, value)] += 1
        self.sum += value


class _Calls:
    """What is counted for one vendor and endpoint."""

    __slots__ = (
        "cache_read",
        "cache_write",
        "duration",
        "first_byte",
        "input",
        "output",
        "reasoning",
        "sources",
        "statuses",
    )

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.first_byte = _Histogram(_FIRST_BYTE_BOUNDS)
        self.duration = _Histogram(_DURATION_BOUNDS)
        self.input = self.cache_read = self.cache_write = self.output = self.reasoning = 0


class Metrics:
    """One worker's numbers."""

    def __init__(self, *, version: str) -> None:
        """`version` is the product's."""
        self._version = version
        self._calls: dict[tuple[str, str], _Calls] = {}
        self._flags: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._vendor_errors: Counter[tuple[str, str]] = Counter()
        self._client_errors: Counter[str] = Counter()
        self._revocations = _Histogram(_REVOCATION_BOUNDS)
        self._connections_open = 0
        self._ledger_rows = 0
        self._ledger_rejected = 0
        self._journal_full = 0
        self._feed_resets = 0
        self._gauges: dict[str, Callable[[], float | None]] = {}

    # the path of a call

    def call_finished(
        self,
        *,
        vendor: str,
        endpoint: str,
        status: str,
        ttfb_seconds: float | None,
        duration_seconds: float,
        usage: Reported,
    ) -> None:
        """Count a call that went to a vendor; `status` is the word in its row."""
        calls = self._calls.get((vendor, endpoint))
        if calls is None:
            calls = self._new_calls(vendor, endpoint)
        calls.statuses[status] += 1
        calls.duration.observe(duration_seconds)
        if ttfb_seconds is not None:
            calls.first_byte.observe(ttfb_seconds)
        if usage.source != "vendor":
            calls.sources[usage.source] += 1
        if usage.input_tokens:
            calls.input += usage.input_tokens
        if usage.output_tokens:
            calls.output += usage.output_tokens
        if usage.reasoning_tokens:  # it is a class of its own
            calls.reasoning += usage.reasoning_tokens
            calls.output -= usage.reasoning_tokens
        if usage.cache_read_tokens:
            calls.cache_read += usage.cache_read_tokens
        if usage.cache_write_tokens:
            calls.cache_write += usage.cache_write_tokens
        if usage.flags:
            self._flags.update(usage.flags)
        if status in _VENDOR_FAILURES:
            self.vendor_error(vendor, status)

    def _new_calls(self, vendor: str, endpoint: str) -> _Calls:
        key = (vendor, endpoint) if len(self._calls) < SERIES_MAX else (OTHER, OTHER)
        return self._calls.setdefault(key, _Calls())

    def refused(self, reason: str) -> None:
        """Count a refusal; `reason` is the value of `x-kaixu-reason`."""
        self._refusals[reason] += 1

    def vendor_error(self, vendor: str, kind: str) -> None:
        """Count a failure of a vendor; `kind` is a word of the product's."""
        if len(self._vendor_errors) >= SERIES_MAX and (vendor, kind) not in self._vendor_errors:
            vendor = OTHER
        self._vendor_errors[vendor, kind] += 1

    def client_error(self, kind: str) -> None:
        """Count a connection that ended badly; `kind` is a word of the product's."""
        self._client_errors[kind] += 1

    def connection_opened(self) -> None:
        """A client connected."""
        self._connections_open += 1

    def connection_closed(self) -> None:
        """It left."""
        self._connections_open -= 1

    def set_connections_open(self, number: int) -> None:
        """So many clients are connected now."""
        self._connections_open = number

    # the background

    def revocation_held(self, delay_seconds: float) -> None:
        """A change, such as a revocation, holds in this worker, so long after its commit."""
        self._revocations.observe(max(0.0, delay_seconds))

    def ledger_added(self, rows: int) -> None:
        """Rows went into the ledger."""
        self._ledger_rows += rows

    def ledger_rejected(self, rows: int = 1) -> None:
        """Rows could not go into the ledger."""
        self._ledger_rejected += rows

    def journal_full(self) -> None:
        """A call was refused, as there was no room to record it."""
        self._journal_full += 1

    def feed_reset(self) -> None:
        """The feed lost its place."""
        self._feed_resets += 1

    def watch(self, name: str, value: Callable[[], float | None]) -> None:
        """Ask `value` for a gauge each time a snapshot is made; None leaves it out."""
        assert FAMILIES[name].kind == "gauge"
        self._gauges[name] = value

    # what was counted

    def snapshot(self) -> Snapshot:
        """Return all numbers as they are now."""
        told: Snapshot = {
            "kaixu_refusals": _one_label(self._refusals),
            "kaixu_usage_flags": _one_label(self._flags),
            "kaixu_client_errors": _one_label(self._client_errors),
            "kaixu_vendor_errors": [Series(key, n) for key, n in self._vendor_errors.items()],
            "kaixu_revocation_delay_seconds": [_histogram((), self._revocations)],
            "kaixu_connections_open": [Series((), self._connections_open)],
            "kaixu_ledger_rows": [Series((), self._ledger_rows)],
            "kaixu_ledger_rejected": [Series((), self._ledger_rejected)],
            "kaixu_journal_full": [Series((), self._journal_full)],
            "kaixu_feed_resets": [Series((), self._feed_resets)],
            "kaixu_build_info": [Series((self._version,), 1)],
        }
        for name, ask in self._gauges.items():
            if (value := ask()) is not None:
                told[name] = [Series((), value)]
        for family, series in self._call_series():
            told.setdefault(family, []).append(series)
        return told

    def _call_series(self) -> Iterator[tuple[str, Series]]:
        for key, calls in self._calls.items():
            for status, number in calls.statuses.items():
                yield "kaixu_requests", Series((*key, status), number)
            for source, number in calls.sources.items():
                yield "kaixu_usage_unknown", Series((*key, source), number)
            for token_class in ("input", "cache_read", "cache_write", "output", "reasoning"):
                series = Series((*key, token_class), getattr(calls, token_class))
                yield "kaixu_tokens", series
            yield "kaixu_time_to_first_byte_seconds", _histogram(key, calls.first_byte)
            yield "kaixu_request_duration_seconds", _histogram(key, calls.duration)


def _one_label(counts: Mapping[str, int]) -> list[Series]:
    return [Series((label,), number) for label, number in counts.items()]


def _histogram(labels: tuple[str, ...], histogram: _Histogram) -> Series:
    return Series(labels, histogram.sum, tuple(histogram.buckets))


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return a snapshot as JSON without line breaks."""
    return msgspec.json.encode(snapshot)


def decode_snapshot(raw: bytes | msgspec.Raw) -> Snapshot:
    """Return the snapshot in `raw`. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(raw, type=Snapshot)


class MachineMetrics(Collector):
    """The sum over a machine's workers, living and dead."""

    def __init__(self) -> None:
        self._latest: dict[str, Snapshot] = {}
        self._dead: Snapshot = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def update(self, process: str, snapshot: Snapshot) -> None:
        """Take the numbers of one process, named uniquely over the machine's life."""
        self._latest[process] = snapshot

    def retire(self, process: str) -> None:
        """A process is gone: its counters stay, its gauges go."""
        snapshot = self._latest.pop(process, None)
        if snapshot is not None:
            lasting = {
                name: series
                for name, series in snapshot.items()
                if name in FAMILIES and FAMILIES[name].kind != "gauge"
            }
            self._dead = merged([self._dead, lasting])

    def exposition(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family, for the registry."""
        total = merged([self._dead, *self._latest.values()])
        for name, family in FAMILIES.items():
            metric = Metric(name, family.help, family.kind)
            for series in total.get(name, ()):
                _add_samples(metric, family, series)
            yield metric


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return one snapshot for several: counters and histograms summed, gauges as they say."""
    total: dict[str, dict[tuple[str, ...], Series]] = {}
    for snapshot in snapshots:
        for name, all_series in snapshot.items():
            by_labels = total.setdefault(name, {})
            for series in all_series:
                if (family := FAMILIES.get(name)) is None or not _fits(family, series):
                    continue  # of another release, while the gateway is being updated
                known = by_labels.get(series.labels)
                by_labels[series.labels] = (
                    series if known is None else _merged(family.merge, known, series)
                )
    return {name: list(by_labels.values()) for name, by_labels in total.items()}


def _fits(family: Family, series: Series) -> bool:
    buckets = len(family.bounds) + 1 if family.kind == "histogram" else 0
    return len(series.labels) == len(family.labels) and len(series.buckets) == buckets


def _merged(merge: Merge, one: Series, other: Series) -> Series:
    if merge == "max":
        return Series(one.labels, max(one.value, other.value))
    if merge == "min":
        return Series(one.labels, min(one.value, other.value))
    buckets = tuple(a + b for a, b in zip(one.buckets, other.buckets, strict=True))
    return Series(one.labels, one.value + other.value, buckets)


def _add_samples(metric: Metric, family: Family, series: Series) -> None:
    labels: dict[str, Any] = dict(zip(family.labels, series.labels, strict=True))
    if family.kind == "histogram":
        count = 0
        for bound, number in zip((*family.bounds, "+Inf"), series.buckets, strict=True):
            count += number
            metric.add_sample(f"{family.name}_bucket", {**labels, "le": str(bound)}, count)
        metric.add_sample(f"{family.name}_count", labels, count)
        metric.add_sample(f"{family.name}_sum", labels, series.value)
    elif family.kind == "counter":
        metric.add_sample(f"{family.name}_total", labels, series.value)
    else:
        metric.add_sample(family.name, labels, series.value)
