"""The row that one attempt of a call leaves: declared here, encoded in two parts.

The open part is known before anything goes to the vendor, the close part when the answer has ended;
joined they are one JSON object, a usage event by its names. What is not known is left out. Most of
an open part is the same from call to call of a client: it is encoded once, and kept.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from gateway.metering.usage import Flag, Usage

_MICROSECONDS: Final = 1_000_000
MONTH_CHARS: Final = len("2026-11")
_SECONDS_KEPT: Final = 16  # texts of whole seconds: calls of one second share theirs

_encode: Final = msgspec.json.Encoder().encode
# Returns a `Purpose` as a JSON object.
encode_purpose: Final[Callable[["Purpose"], bytes]] = _encode


class MeteredObject(NamedTuple):
    """A stored object whose usage a row tells.

    `is_retrieved`: another call made it; `is_deferred`: this one did, and left its usage for later.
    """

    vendor_id: str
    object_id: str
    is_retrieved: bool
    is_deferred: bool


class Purpose(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Who calls what: what an attempt's row has in common with others of this client's."""

    org_id: str
    workspace_id: str
    user_id: str
    token_id: str
    vendor: str
    endpoint: str
    client_format: str
    stream: bool
    counted: bool
    model_requested: str | None = None
    session_id: str | None = None


def open_part(
    purpose: bytes, *, attempt_id: str, call_id: str, attempt: int, retry_of: str | None, time: str
) -> bytes:
    """Return what is known of an attempt when it goes to the vendor, as a JSON object.

    `purpose` is what `encode_purpose` gave, `time` that of its admission.
    """
    retry = f'"retry_of":"{retry_of}",' if retry_of is not None else ""
    head = (
        f'{{"id":"{attempt_id}","call_id":"{call_id}","attempt":{attempt},'
        f'"time":"{time}","month":"{time[:MONTH_CHARS]}",{retry}'
    )
    return head.encode() + purpose[1:]


class ClosePart(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How an attempt ended, and what it used."""

    ended_at: str
    status: str
    duration_ms: float
    bytes_up: int
    bytes_down: int
    http_status: int | None = None
    reason: str | None = None
    ttfb_ms: float | None = None
    vendor_request_id: str | None = None
    # What was used, see `tell`.
    usage_source: str | None = None
    flags: tuple[str, ...] = ()
    model_served: str | None = None
    service_tier: str | None = None
    finish_reason: str | None = None
    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    image_input_tokens: int | None = None
    seconds: int | float | None = None
    searches: int | None = None
    pages: int | None = None
    metered_vendor_id: str | None = None
    metered_object: str | None = None
    metered_again: bool | None = None
    metered_deferred: bool | None = None
    vendor_usage: msgspec.Raw | None = None

    def tell(self, usage: Usage, metered_object: MeteredObject | None) -> None:
        """Take in what was used; a stored object is named where its usage is told."""
        self.usage_source = usage.source
        self.flags = usage.flags
        self.model_served = usage.model_served
        self.service_tier = usage.service_tier
        self.finish_reason = usage.finish_reason
        if usage.vendor_usage is not None:
            self.vendor_usage = msgspec.Raw(usage.vendor_usage)
        if usage.source == "none":
            return
        self.input_tokens = usage.input_tokens
        self.cache_read_tokens = usage.cache_read_tokens
        self.cache_write_tokens = usage.cache_write_tokens
        self.cache_write_5m_tokens = usage.cache_write_5m_tokens
        self.cache_write_1h_tokens = usage.cache_write_1h_tokens
        self.output_tokens = usage.output_tokens
        self.reasoning_tokens = usage.reasoning_tokens
        self.audio_input_tokens = usage.audio_input_tokens
        self.audio_output_tokens = usage.audio_output_tokens
        self.image_input_tokens = usage.image_input_tokens
        self.seconds = usage.seconds
        self.searches = usage.searches
        self.pages = usage.pages
        if metered_object is not None:
            self.metered_vendor_id = metered_object.vendor_id
            self.metered_object = metered_object.object_id
            self.metered_again = metered_object.is_retrieved
            self.metered_deferred = metered_object.is_deferred


def encode_whole(opened: bytes, part: ClosePart) -> bytes:
    """Return the whole row as a JSON object; `opened` is its open part."""
    try:
        closed = _encode(part)
    except UnicodeEncodeError:  # half a surrogate in a text that a vendor sent
        part.model_served = part.finish_reason = part.service_tier = None
        part.flags = (*part.flags, Flag.BAD_TEXT.value)
        closed = _encode(part)
    return b"%b,%b" % (opened[:-1], closed[1:])


def rfc3339(unix_seconds: float) -> str:
    """Return a time as RFC 3339 in UTC, with microseconds: '2026-11-24T12:00:00.000000Z'."""
    second = int(unix_seconds)
    microseconds = int((unix_seconds - second) * _MICROSECONDS)
    return f"{_whole_second(second)}.{microseconds:06}Z"


@lru_cache(maxsize=_SECONDS_KEPT)
def _whole_second(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
