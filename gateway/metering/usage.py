"""What one call used, as facts: disjoint meters, what is of which, and what the vendor said.

Input is told in three meters that never overlap: `input_tokens` (not from a cache),
`cache_read_tokens` and `cache_write_tokens`. Output is one meter. Everything else is *of which*
(reasoning, audio, image, the parts of cache writes) or a unit of its own (seconds, searches,
pages). None is "not said", 0 is "said zero". Nothing here is priced, and nothing is ever negative:
numbers that can't be true are dropped, numbers that contradict each other are cut down to what
holds together, and both leave a flag.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec

COUNT_MAX: Final = 2**53  # above it a JSON number is not exact, and no call is that large
TEXT_CHARS_MAX: Final = 128  # of a model's name, a service tier, a finish reason
VENDOR_USAGE_BYTES_MAX: Final = 8 * 1024  # of the raw usage JSON that a row keeps

Source = Literal["vendor", "partial", "none"]


class Flag(StrEnum):
    """What is doubtful about a usage; each is a word in the row's `flags`."""

    BAD_NUMBER = "bad_number"  # a count was not a whole number of 0 to 2**53: dropped
    BAD_TEXT = "bad_text"  # a name was no text, too long, or can't be stored: dropped
    CACHE_EXCEEDS_INPUT = "cache_exceeds_input"  # cut to the input; the uncached rest is 0
    CACHE_WRITE_SPLIT_DIFFERS = "cache_write_split_differs"  # 5 min + 1 h > total: their sum holds
    REASONING_EXCEEDS_OUTPUT = "reasoning_exceeds_output"
    AUDIO_EXCEEDS_INPUT = "audio_exceeds_input"  # cut to the input
    AUDIO_EXCEEDS_OUTPUT = "audio_exceeds_output"  # cut to the output
    IMAGE_EXCEEDS_INPUT = "image_exceeds_input"  # cut to the input
    TOTAL_DIFFERS = "total_differs"  # the vendor's total is not the sum of its parts
    FIELDS_WITHDRAWN = "fields_withdrawn"  # the last report lacks a count that an earlier one had
    # Billed beside the counts: vendor_usage.iterations, or vendor_usage.svg_usage.
    ITERATIONS_ON_TOP = "iterations_on_top"
    VENDOR_USAGE_CUT = "vendor_usage_cut"  # larger than a row keeps: the largest members left out
    VENDOR_USAGE_UNSTORABLE = "vendor_usage_unstorable"  # not UTF-8, or no database would take it
    IN_STREAM_ERROR = "in_stream_error"  # an error came inside an answer that began with 200
    UNREADABLE = "unreadable"  # an answer, or an event that seemed to hold usage, is not JSON
    EVENT_TOO_LARGE = "event_too_large"  # an event was skipped
    DECODED_TOO_LARGE = "decoded_too_large"  # a compressed answer swelled: metering stopped
    UNDECODABLE = "undecodable"  # the content encoding is unknown or broken: metering stopped
    DEFERRED = "deferred"  # of something whose usage is told later, or that was begun before
    METERED_BEFORE = "metered_before"  # the usage was in a row already: left out of this one
    METER_FAILED = "meter_failed"  # a defect of ours: metering stopped


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one call. Counts are whole numbers, `seconds` may have a fraction.

    `source`: "vendor" where the vendor's final report was read, "partial" where the answer was cut
    and this is what had been told until then, "none" where nothing was told.
    """

    input_tokens: int | None = None  # neither read from nor written to a cache; audio, image in it
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None  # all of them
    cache_write_5m_tokens: int | None = None  # of cache_write_tokens
    cache_write_1h_tokens: int | None = None  # of cache_write_tokens
    output_tokens: int | None = None  # reasoning and audio in it
    reasoning_tokens: int | None = None  # of output_tokens
    audio_input_tokens: int | None = None  # of all input, cached or not
    audio_output_tokens: int | None = None  # of output_tokens
    image_input_tokens: int | None = None  # of all input, cached or not
    seconds: int | float | None = None  # of audio, where the vendor counts time
    searches: int | None = None
    pages: int | None = None
    service_tier: str | None = None
    finish_reason: str | None = None  # the vendor's own word
    model_served: str | None = None  # as the response says
    flags: tuple[str, ...] = ()
    vendor_usage: bytes | None = None  # raw JSON object, at most VENDOR_USAGE_BYTES_MAX
    source: Source = "none"


# What a vendor says of work that goes on: its usage, if there is any, is not the last word.
UNFINISHED: Final = frozenset(
    {"queued", "in_progress", "validating", "finalizing", "cancelling", "canceling"}
)


def told_later(usage: Usage, *, retrieves: bool, defers: bool) -> Usage:
    """Return the usage that a row may tell of an object which others may tell of as well.

    `retrieves`: the answer was about something made before: only its last word counts, for what
    a row tells is never told again. `defers`: more is to come, from who retrieves it.
    """
    if not retrieves and not defers:
        return usage
    is_open = usage.finish_reason in UNFINISHED or (retrieves and usage.source != "vendor")
    if is_open:
        told = dict.fromkeys(METERS)
        usage = msgspec.structs.replace(usage, source="none", vendor_usage=None, **told)
    is_deferred = usage.source == "none" if defers else usage.source != "none"
    if not is_deferred:
        return usage
    return msgspec.structs.replace(usage, flags=(*usage.flags, Flag.DEFERRED.value))


METERS: Final = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "seconds",
    "searches",
    "pages",
)


class Flags:
    """The flags raised while one answer is read: each once, in the order raised."""

    _raised: tuple[str, ...] = ()

    def raise_(self, flag: Flag) -> None:
        """Raise `flag`; again is nothing new."""
        if flag.value not in self._raised:
            self._raised = (*self._raised, flag.value)

    def names(self) -> tuple[str, ...]:
        """Return what was raised."""
        return self._raised


class Reported:
    """A vendor's usage object, read with suspicion: what can't be true is None and flagged."""

    def __init__(self, members: dict[str, Any], flags: Flags) -> None:
        """`members` is the decoded object; `flags` takes what is found wrong with it."""
        self._members = members
        self.flags = flags

    def count(self, *path: str) -> int | None:
        """Return the whole number at `path`, or None where it is absent, null or impossible."""
        value = self.at(*path)
        if value is None:
            return None
        if type(value) is int and 0 <= value <= COUNT_MAX:
            return value
        self.flags.raise_(Flag.BAD_NUMBER)
        return None

    def first_count(self, *paths: tuple[str, ...]) -> int | None:
        """Return the first count that is there: vendors put the same fact in several places."""
        for path in paths:
            if (count := self.count(*path)) is not None:
                return count
        return None

    def seconds(self, *path: str) -> int | float | None:
        """Return the time at `path`, which may have a fraction, or None."""
        value = self.at(*path)
        if value is None:
            return None
        if type(value) in (int, float) and math.isfinite(value) and 0 <= value <= COUNT_MAX:
            return value  # type: ignore[no-any-return]
        self.flags.raise_(Flag.BAD_NUMBER)
        return None

    def text(self, *path: str) -> str | None:
        """Return the text at `path`, or None."""
        return clean_text(self.at(*path), self.flags)

    def at(self, *path: str) -> Any:  # noqa: ANN401 - JSON
        """Return what is at `path`, or None."""
        value: Any = self._members
        for name in path:
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

    def of_which(self, part: int | None, whole: int | None, flag: Flag) -> int | None:
        """Return `part`, cut down to `whole` and flagged where it is more."""
        return of_which(part, whole, flag, self.flags)


def of_which(part: int | None, whole: int | None, flag: Flag, flags: Flags) -> int | None:
    """Return `part`, cut down to `whole` and flagged where it is more."""
    if part is None or whole is None or part <= whole:
        return part
    flags.raise_(flag)
    return whole


def first_of(*counts: int | None) -> int | None:
    """Return the first count that is there: vendors put the same fact in several places."""
    for count in counts:
        if count is not None:
            return count
    return None


def disjoint_input(
    total: int | None, read: int | None, write: int | None, flags: Flags
) -> tuple[int | None, int | None, int | None]:
    """Split an input that includes its cached parts into (uncached, cache read, cache write)."""
    if total is None:
        return None, read, write
    uncached = total - (read or 0) - (write or 0)
    if uncached >= 0:
        return uncached, read, write
    flags.raise_(Flag.CACHE_EXCEEDS_INPUT)
    read = None if read is None else min(read, total)
    write = None if write is None else min(write, total - (read or 0))
    return total - (read or 0) - (write or 0), read, write


def clean_text(value: object, flags: Flags) -> str | None:
    """Return `value` if it is a text that a row can hold, else None, flagged."""
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= TEXT_CHARS_MAX and value.isprintable():
        return value
    flags.raise_(Flag.BAD_TEXT)
    return None


_NOT_A_NUMBER = re.compile(rb'("(?:[^"\\]|\\.)*")|-?\b(?:NaN|Infinity)\b', re.DOTALL)


def without_nan(document: bytes) -> bytes:
    """Return JSON with `NaN` and `Infinity`, which some servers write, turned into null."""
    return _NOT_A_NUMBER.sub(lambda found: found.group(1) or b"null", document)


def decode_object(raw: bytes) -> dict[str, Any] | None:
    """Return the JSON object in `raw`, or None where it is none. Never raises."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            value = json.loads(raw)  # takes numbers out of range, as infinity
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


# What PostgreSQL's jsonb refuses in valid JSON: U+0000, half a surrogate pair, an absurd exponent.
_UNSTORABLE = re.compile(rb"\\u0000|\\u[dD][89a-fA-F]|\d[eE]\+?\d{3,}")
_DIGITS_ALIKE: Final = bytes.maketrans(b"E123456789", b"e000000000")


def storable_usage(raw: bytes, flags: Flags, *, shorten: Callable[[bytes], bytes]) -> bytes | None:
    """Return a usage object as a row can keep it, or None where none can.

    Verbatim up to VENDOR_USAGE_BYTES_MAX; beyond, valid JSON still: what `shorten` makes of it,
    with the largest members left out if that is not short enough.
    """
    if len(raw) > VENDOR_USAGE_BYTES_MAX:
        flags.raise_(Flag.VENDOR_USAGE_CUT)
        raw = shorten(raw)
    if len(raw) > VENDOR_USAGE_BYTES_MAX:
        raw = _without_largest_members(raw)
    try:
        raw.decode()
    except UnicodeDecodeError:
        flags.raise_(Flag.VENDOR_USAGE_UNSTORABLE)
        return None
    # The search is slow, and nearly always needless.
    may_be_unstorable = raw.find(b"\\") >= 0 or raw.translate(_DIGITS_ALIKE).find(b"0e") >= 0
    if may_be_unstorable and _UNSTORABLE.search(raw):
        flags.raise_(Flag.VENDOR_USAGE_UNSTORABLE)
        return None
    return raw


def join_members(members: Mapping[str, bytes]) -> bytes:
    """Return the JSON object of raw members."""
    return b"{" + b",".join(msgspec.json.encode(k) + b":" + v for k, v in members.items()) + b"}"


def split_members(raw: bytes) -> dict[str, bytes] | None:
    """Return the raw members of a JSON object, or None where it is none. Never raises."""
    try:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return {name: bytes(value) for name, value in members.items()}


def _without_largest_members(raw: bytes) -> bytes:
    members = split_members(raw) or {}
    room = VENDOR_USAGE_BYTES_MAX - len(b"{}")
    kept = set()
    for name, value in sorted(members.items(), key=lambda member: len(member[1])):
        room -= len(msgspec.json.encode(name)) + len(value) + len(b":,")
        if room < 0:
            break
        kept.add(name)
    return join_members({name: value for name, value in members.items() if name in kept})
