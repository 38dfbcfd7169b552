"""What figures are made of: percentiles of samples, medians over rounds, ratios between systems."""

import statistics
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SAMPLE_TYPE: Final = "I"  # uint32, as the load client writes them
QUANTILES: Final = (0.5, 0.99, 0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Three percentiles, in µs."""

    p50: float
    p99: float
    p999: float

    def minus(self, other: "Latency") -> "Latency":
        """Return what this one adds to the other, percentile by percentile."""
        return Latency(
            p50=self.p50 - other.p50, p99=self.p99 - other.p99, p999=self.p999 - other.p999
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over the rounds: their median, the least and the greatest."""

    median: float
    least: float
    greatest: float
    rounds: int


def read_samples(path: Path) -> Sequence[int]:
    """Return the samples of a file of the load client's, in ns."""
    samples = array(SAMPLE_TYPE)
    samples.frombytes(path.read_bytes())
    return samples


def percentile(ordered: Sequence[float], quantile: float) -> float:
    """Return the smallest sample that `quantile` of all are at or below; samples are in order."""
    assert ordered
    assert 0 < quantile <= 1
    whole, rest = divmod(len(ordered) * quantile, 1)
    return ordered[int(whole) - (0 if rest > 1e-9 else 1)]  # noqa: PLR2004 - float noise


def latency_of(samples_ns: Iterable[int]) -> Latency | None:
    """Return the percentiles of samples in ns, or None where there is none."""
    ordered = sorted(samples_ns)
    if not ordered:
        return None
    p50, p99, p999 = (percentile(ordered, quantile) / 1000 for quantile in QUANTILES)
    return Latency(p50=p50, p99=p99, p999=p999)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return the spread of what was measured, or None where nothing was."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(
        median=statistics.median(known), least=min(known), greatest=max(known), rounds=len(known)
    )


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Spread | None:
    """Return theirs ÷ ours, both by round: of the medians; least and greatest within one round.

    None where one of them has no round, or ours costs nothing.
    """
    mine, other = spread(ours.values()), spread(theirs.values())
    if mine is None or other is None or mine.median <= 0:
        return None
    of_rounds = [theirs[number] / ours[number] for number in theirs if ours.get(number, 0) > 0]
    whole = other.median / mine.median
    return Spread(
        median=whole,
        least=min([*of_rounds, whole]),
        greatest=max([*of_rounds, whole]),
        rounds=len(of_rounds),
    )
