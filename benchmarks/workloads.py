"""The workloads: what is asked of each system, how often, and for how long."""

import json
from dataclasses import dataclass, replace
from typing import Final, Literal

FIRST_ANSWER: Final = "s2x0"  # a stream that is over at once, for a system's first calls
ALIAS_PREFIX: Final = "fast-"  # clients name an alias; ours puts the vendor's name in its place
VENDOR_PREFIX: Final = "bench-"

MICROSECONDS: Final = 1e6

SMALL_BODY_BYTES: Final = 600
IDE_BODY_BYTES: Final = 64 * 1024
STREAM_BODY_BYTES: Final = 600

_CODE: Final = (
    "def total(items: list[Item], *, rate: float) -> float:\n"
    '    """Return the sum of what is due, for \u00e9very item."""\n'
    "\treturn sum(item.price * (1 + rate) for item in items if item.name != 'none')\n\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kind of load.

    - `answer`: the word by which benchmarks/answers.h knows what comes back.
    - `connections`: that carry one call at a time each; of streams: how many are open.
    - `ramp_seconds`: over which they open; `warm_seconds`: of load before it counts;
      `seconds`: that count.
    - `unit`: what the CPU time is divided by.
    - `body_bytes`, `model_last`: the request.
    - `names_alias`: the model is named by an alias; `asks_usage`: a stream asks for its usage
      itself. Either leaves ours less to put in.
    - `by_tls`: the way to the vendor. `by_clock`: latency is taken in a second run, whose calls go
      out as the clock says; else from the events' own stamps.
    """

    name: str
    title: str
    answer: str
    connections: int
    unit: Literal["call", "event"]
    body_bytes: int
    model_last: bool = False
    names_alias: bool = True
    asks_usage: bool = False
    ramp_seconds: float = 0.2
    warm_seconds: float = 2.0
    seconds: float = 4.0
    by_tls: bool = False
    by_clock: bool = False
    systems: tuple[str, ...] | None = None  # None: all

    @property
    def is_stream(self) -> bool:
        """Whether events come back."""
        return self.unit == "event"

    @property
    def events_per_second(self) -> float | None:
        """How many events the vendor sends when nobody is late; None: it sends no events."""
        if not self.is_stream:
            return None
        return self.connections * MICROSECONDS / int(self.answer.partition("x")[2])

    @property
    def model(self) -> str:
        """The model's name as clients send it."""
        return (ALIAS_PREFIX if self.names_alias else VENDOR_PREFIX) + self.answer

    @property
    def answers(self) -> tuple[str, ...]:
        """All that it asks for, those of a system's first calls included."""
        return (self.answer, FIRST_ANSWER) if self.is_stream else (self.answer,)

    def first_calls(self) -> "Workload":
        """Return what a system is asked before its streams count."""
        return replace(self, connections=1, answer=FIRST_ANSWER)

    def body(self) -> bytes:
        """Return the request's body, of just `body_bytes` bytes."""
        model = {"model": self.model}
        stream: dict[str, object] = {"stream": True} if self.is_stream else {}
        if self.asks_usage:
            stream["stream_options"] = {"include_usage": True}

        def written(content: str) -> bytes:
            messages = {"messages": [{"role": "user", "content": content}], "temperature": 0.2}
            parts = {**messages, **stream, **model} if self.model_last else {
                **model, **messages, **stream,
            }  # fmt: skip
            return json.dumps(parts, separators=(",", ":")).encode()

        text = _CODE * (self.body_bytes // len(_CODE) + 1)
        low, high = 0, len(text)
        while low < high:  # the longest text that fits, then blanks
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(written(text[:middle])) <= self.body_bytes else (
                low, middle - 1,
            )  # fmt: skip
        content = text[:low]
        return written(content + " " * (self.body_bytes - len(written(content))))

    def shortened(self) -> "Workload":
        """Return the form for a quick look."""
        return replace(
            self,
            warm_seconds=min(self.warm_seconds, 0.5),
            seconds=min(self.seconds, 1.5),
        )

    def with_streams(self, streams: int) -> "Workload":
        """Return it with at most so many at once."""
        return replace(self, connections=min(self.connections, streams))


SMALL: Final = Workload(
    name="a",
    title="small call: 600 B up, 900 B down",
    answer="u900",
    connections=32,
    unit="call",
    body_bytes=SMALL_BODY_BYTES,
    by_clock=True,
)
IDE: Final = Workload(
    name="b",
    title="an IDE's call: 64 KiB up with the model's name last, 4 KiB down",
    answer="u4096",
    connections=32,
    unit="call",
    body_bytes=IDE_BODY_BYTES,
    model_last=True,
    by_clock=True,
)
FAST_STREAMS: Final = Workload(
    name="c",
    title="64 streams of 200 events, one every 5 ms",
    answer="s200x5000",
    connections=64,
    unit="event",
    body_bytes=STREAM_BODY_BYTES,
    ramp_seconds=1.0,
    warm_seconds=1.0,
    seconds=5.0,
)
SLOW_STREAMS: Final = Workload(
    name="d",
    title="1,000 streams of 150 events, one every 100 ms",
    answer="s150x100000",
    connections=1000,
    unit="event",
    body_bytes=STREAM_BODY_BYTES,
    ramp_seconds=2.0,
    warm_seconds=1.0,
    seconds=8.0,
)
TLS_CALLS: Final = replace(SMALL, name="ea", title="(a) with TLS to the vendor", by_tls=True)
TLS_STREAMS: Final = replace(
    FAST_STREAMS, name="ec", title="(c) with TLS to the vendor", by_tls=True
)

MANY_STREAMS_LEAST: Final = 1_000
MANY_STREAMS_MOST: Final = 9_500
DESCRIPTORS_SPARE: Final = 500  # beside two for each stream
_OPENED_PER_SECOND: Final = 500  # as (d): what opens them is not what is measured


def many_streams(streams: int, *, is_quick: bool) -> Workload:
    """Return (f) with so many streams: an event a second each, all open through the window."""
    ramp = max(1.0, streams / _OPENED_PER_SECOND)
    seconds = 3.0 if is_quick else 10.0
    events = int(ramp + 2 + seconds + 3)
    return Workload(
        name=f"f{streams}",
        title=f"{streams:,} streams, an event every second",
        answer=f"s{events}x1000000",
        connections=streams,
        unit="event",
        body_bytes=STREAM_BODY_BYTES,
        ramp_seconds=ramp,
        warm_seconds=2.0,
        seconds=seconds,
        systems=("ours", "nginx", "envoy"),
    )


def streams_most(descriptors: int) -> int:
    """Return how many streams (f) opens, where a process may have so many descriptors."""
    return max(MANY_STREAMS_LEAST, min(MANY_STREAMS_MOST, (descriptors - DESCRIPTORS_SPARE) // 2))


STORES: Final = (10, 10_000, 1_000_000)  # tokens in the store of (g)
DISTINCT_TOKENS: Final = 10_000  # that its calls cycle over, where there are as many


def store_of(tokens: int) -> Workload:
    """Return (g) with so many tokens in the store."""
    return replace(
        SMALL,
        name=f"g{tokens}",
        title=f"(a) with {tokens:,} tokens in the store, {min(tokens, DISTINCT_TOKENS):,} calling",
        by_clock=False,
        systems=("ours",),
    )
