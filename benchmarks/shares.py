"""What each feature costs: calls with everything on, beside calls without that one feature.

The product has no switch for most of them: `benchmarks.without` starts it with something that does
nothing in a part's place. Others are off because a token has no such limit, or a client leaves
nothing to splice. Every measurement proves that just this feature was off, by what its calls have
left behind. TLS to the vendor is the other way round: off in all others, on in its own.
"""

import contextlib
import http.client
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from benchmarks.figures import Spread, spread
from benchmarks.marks import JOURNAL_KEPT, calls_since, closed_calls, counted_requests
from benchmarks.measure import Bench, Direct, Measurement, measure
from benchmarks.ours import Ours, Setup
from benchmarks.processes import RigError
from benchmarks.report import by_round, table, with_spread
from benchmarks.systems import CALLS_PATH, LOOPBACK, Around, Running
from benchmarks.without import MARK, NOTHING, SeamMissing, check_seams, command, counted
from benchmarks.workloads import FAST_STREAMS, SMALL, Workload

EVERYTHING: Final = "everything on"
PROBE_SECONDS_MAX: Final = 10.0
# In the ledger, as ours.sql counts them.
ROW_MARKS: Final = ("rows", "whole", "unmetered", "aliased", "limited", "windowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One feature, and how it is left out.

    - `part`: what `benchmarks.without` calls it; `setup`, `changes`: what is different about the
      token, and about the calls.
    - `is_added`: it is on in its own measurement and off in all others.
    - `workloads`: in which it costs something.
    - `absent`: the marks that a call does not leave without it; `unmetered` is the one that no call
      leaves otherwise.
    """

    name: str
    part: str = NOTHING
    setup: Mapping[str, bool] = field(default_factory=dict)
    changes: Mapping[str, bool] = field(default_factory=dict)
    is_added: bool = False
    workloads: tuple[str, ...] = (SMALL.name,)
    absent: tuple[str, ...] = ()

    def changed(self, workload: Workload) -> Workload:
        """Return the workload with the calls that leave this out."""
        return replace(workload, **self.changes)  # type: ignore[arg-type]


BOTH: Final = (SMALL.name, FAST_STREAMS.name)
FEATURES: Final = (
    Feature(name="journal", part="journal", absent=("journal",)),
    Feature(name="of it the group sync", part="journal-sync"),
    Feature(name="ledger: shipping rows", part="ledger", absent=("ledger",)),
    Feature(name="metering", part="metering", workloads=BOTH, absent=("whole",)),
    Feature(name="metrics", part="metrics", absent=("metrics",)),
    Feature(
        name="rate window, cap on open calls", setup={"has_permits": False}, absent=("windowed",)
    ),
    Feature(name="monthly limit", setup={"has_month": False}, absent=("limited",)),
    Feature(name="alias splice", changes={"names_alias": False}, absent=("aliased",)),
    Feature(name="usage splice", changes={"asks_usage": True}, workloads=(FAST_STREAMS.name,)),
    Feature(name="header policy", part="header-policy", absent=("headers",)),
    Feature(name="TLS to the vendor", changes={"by_tls": True}, is_added=True, workloads=BOTH),
)
NONE: Final = Feature(name=EVERYTHING, workloads=BOTH)
WORKLOADS: Final = (replace(SMALL, by_clock=False), FAST_STREAMS)


class Variant(Ours):
    """Ours without a feature; each of its measurements proves it."""

    def __init__(self, feature: Feature, *, counts: Path) -> None:
        """`counts`: a folder for what stands in. Raises SeamMissing."""
        check_seams(feature.part)
        program = command(feature.part, counts)
        super().__init__(Setup(program=program, settings=JOURNAL_KEPT, **feature.setup))
        self.feature = feature
        self._counts = counts

    @contextlib.contextmanager
    def start(self, workload: Workload, around: Around) -> Iterator[Running]:
        """Start it anew; see System. Raises RigError where the feature was on, or another off."""
        self._counts.mkdir(parents=True, exist_ok=True)
        counted(self._counts)  # of a worker that was ended before its measurement
        made = 0
        with self.up(around, name="tls" if workload.by_tls else "plain") as product:
            running = product.ready(workload, around)
            rows, calls = product.count(), closed_calls(product.journal)

            def check(number: int) -> None:
                nonlocal made
                made = number
                expected = expected_marks(self.feature, number)
                found = {
                    **product.added(rows, expected["rows"]),
                    "journal": sum(calls_since(calls, closed_calls(product.journal)).values()),
                    "metrics": counted_requests(product.ops_url),
                    "headers": number if keeps_headers(running, workload) else 0,
                }
                compare(found, expected)

            yield replace(running, check=check)
        asked = counted(self._counts)  # a worker that was told to end has shipped all its rows
        least = 1 if self.feature.part == "journal-sync" else made
        if self.feature.part != NOTHING and asked < least:
            raise RigError(f"what stands in for {self.feature.name} was asked {asked} times")


def expected_marks(feature: Feature, calls: int) -> dict[str, int]:
    """Return how many of so many calls leave each mark without this feature."""
    names = (*ROW_MARKS, "journal", "metrics", "headers")
    absent = {*feature.absent, *(ROW_MARKS if "ledger" in feature.absent else ())}
    expected = {name: 0 if name in absent else calls for name in names}
    expected["unmetered"] = calls if "whole" in feature.absent else 0
    return expected


def compare(found: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Raise RigError unless calls have left the marks that they should."""
    wrong = [
        f"{name}: {found[name]} in place of {count}"
        for name, count in expected.items()
        if found[name] != count
    ]
    if wrong:
        raise RigError(f"not what was to be measured: {', '.join(wrong)}")


def keeps_headers(running: Running, workload: Workload) -> bool:
    """Make a call; return whether its answer's headers are the vendor's, not what stands in."""
    asked = workload.first_calls() if workload.is_stream else workload
    connection = http.client.HTTPConnection(LOOPBACK, running.port, timeout=PROBE_SECONDS_MAX)
    headers = dict(line.split(": ", 1) for line in running.headers)
    try:
        connection.request(
            "POST", CALLS_PATH, body=asked.body(),
            headers={**headers, "content-type": "application/json"},
        )  # fmt: skip
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    name, value = (one.decode() for one in MARK)
    return answer.headers.get(name) != value and "content-type" in answer.headers


# ----------------------------------------------------------------------------------- in turn


@dataclass(kw_only=True)
class Shares:
    """Measurements of features, under way."""

    bench: Bench
    around: Around
    everything: Variant
    variants: Sequence[Variant]
    is_quick: bool
    note: Callable[[Measurement], None]
    measurements: list[Measurement] = field(default_factory=list)

    def round(self, number: int) -> None:
        """Measure every variant on its workloads once, each beside one with everything on.

        Now the one comes first, now the other: a machine grows busier or idler meanwhile.
        """
        for workload in WORKLOADS:
            for variant in self.variants:
                feature = variant.feature
                if workload.name not in feature.workloads:
                    continue
                pair = [(self.everything, beside(feature.name)), (variant, feature.name)]
                for either, name in pair if number % 2 == 0 else reversed(pair):
                    measured = self._one(either, workload, number, name=name)
                    self.measurements.append(measured)
                    self.note(measured)

    def _one(self, one: Variant, workload: Workload, number: int, *, name: str) -> Measurement:
        changed = one.feature.changed(workload)
        if self.is_quick:
            changed = changed.shortened()
        try:
            with one.start(changed, self.around) as running:
                return measure(
                    self.bench,
                    changed,
                    running,
                    system=name,
                    number=number,
                    rewrites=False,
                    rate_most=None,
                    direct=lambda _: Direct(latency=None, first_byte=None),
                )
        except RigError as error:
            return Measurement(
                workload=workload.name,
                system=name,
                round=number,
                error=str(error),
            )


def beside(feature: str) -> str:
    """Return the name of the measurement with everything on that a feature's is compared with."""
    return f"{EVERYTHING}, beside {feature}"


def variants(
    counts: Path, *, has_tls: bool, left_out: dict[str, str], features: Sequence[Feature] = FEATURES
) -> list[Variant]:
    """Return ours without each feature; one that can't be left out is told in `left_out`."""
    found = []
    for feature in features:
        if feature.is_added and not has_tls:
            left_out[feature.name] = "OpenSSL's headers are not installed"
            continue
        try:
            found.append(Variant(feature, counts=counts))
        except SeamMissing as error:
            left_out[feature.name] = str(error)
    return found


# ------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a feature costs: CPU µs a call or an event, with it and without, and the difference.

    The difference is taken within each pair, and its median is told. `error`: why a round of it
    is not counted.
    """

    workload: str
    feature: str
    on: Spread | None
    off: Spread | None
    difference: Spread | None
    error: str | None


def shares_of(measurements: Sequence[Measurement]) -> list[Share]:
    """Return what each feature costs."""
    found = []
    for workload in WORKLOADS:
        here = [one for one in measurements if one.workload == workload.name]
        for feature in FEATURES:
            own = [one for one in here if one.system == feature.name]
            others = [one for one in here if one.system == beside(feature.name)]
            if not own:
                continue
            changed, everything = by_round(own, "cpu_us"), by_round(others, "cpu_us")
            on, off = (changed, everything) if feature.is_added else (everything, changed)
            found.append(
                Share(
                    workload=workload.name,
                    feature=feature.name,
                    on=spread(on.values()),
                    off=spread(off.values()),
                    difference=spread(on[number] - off[number] for number in on.keys() & off),
                    error=next((one.error for one in [*own, *others] if one.error), None),
                )
            )
    return found


def render_shares(shares: Sequence[Share]) -> str:
    """Return the tables in Markdown."""
    parts = []
    for workload in WORKLOADS:
        here = [one for one in shares if one.workload == workload.name]
        rows = [
            [
                one.feature,
                *(with_spread(figure, digits=1) for figure in (one.on, one.off, one.difference)),
                _percent(one),
            ]
            for one in here
        ]
        head = ["feature", f"CPU µs a {workload.unit} with it", "without", "difference", "%"]
        errors = [f"\n\nNot counted: {one.feature}: {one.error}" for one in here if one.error]
        if rows:
            title = f"**({workload.name})** {workload.title}: what each feature costs"
            parts.append(f"{title}\n\n{table(head, rows)}{''.join(errors)}")
    return "\n\n".join(parts) + "\n"


def _percent(share: Share) -> str:
    if share.on is None or share.difference is None or not share.on.median:
        return "-"
    return f"{100 * share.difference.median / share.on.median:.0f}"
