"""The row that one attempt of a call leaves: declared here, encoded in two parts.

The open part is known before anything goes to the vendor, the close part when the answer has ended;
joined they are one JSON object, a usage event by its names. What is not known is left out.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from gateway.metering.usage import Flag, Usage

_MICROSECONDS: Final = 1_000_000
_SECONDS_KEPT: Final = 16  # texts of whole seconds: calls of one second share theirs

_encode: Final = msgspec.json.Encoder().encode


class MeteredObject(NamedTuple):
    """A stored object whose usage a row tells.

    `is_retrieved`: another call made it; `is_deferred`: this one did, and left its usage for later.
    """

    vendor_id: str
    object_id: str
    is_retrieved: bool
    is_deferred: bool


class OpenPart(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is known of an attempt when it goes to the vendor."""

    id: str
    call_id: str
    attempt: int
    time: str  # of admission
    month: str
    org_id: str
    workspace_id: str
    user_id: str
    token_id: str
    vendor: str
    endpoint: str
    client_format: str
    stream: bool
    counted: bool
    retry_of: str | None = None
    model_requested: str | None = None
    session_id: str | None = None


class ClosePart(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How an attempt ended, and what it used."""

    ended_at: str
    status: str
    duration_ms: float
    bytes_up: int
    bytes_down: int
    usage_source: str
    http_status: int | None = None
    reason: str | None = None
    ttfb_ms: float | None = None
    vendor_request_id: str | None = None
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


def close_part(
    usage: Usage,
    metered_object: MeteredObject | None,
    *,
    ended_at: str,
    status: str,
    http_status: int | None,
    reason: str | None,
    vendor_request_id: str | None,
    ttfb_ms: float | None,
    duration_ms: float,
    bytes_up: int,
    bytes_down: int,
) -> ClosePart:
    """Return the close part. A stored object is named where its usage is told."""
    part = ClosePart(
        ended_at=ended_at,
        status=status,
        duration_ms=duration_ms,
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        usage_source=usage.source,
        http_status=http_status,
        reason=reason,
        ttfb_ms=ttfb_ms,
        vendor_request_id=vendor_request_id,
        flags=usage.flags,
        model_served=usage.model_served,
        service_tier=usage.service_tier,
        finish_reason=usage.finish_reason,
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        audio_input_tokens=usage.audio_input_tokens,
        audio_output_tokens=usage.audio_output_tokens,
        image_input_tokens=usage.image_input_tokens,
        seconds=usage.seconds,
        searches=usage.searches,
        pages=usage.pages,
    )
    if usage.vendor_usage is not None:
        part.vendor_usage = msgspec.Raw(usage.vendor_usage)
    if metered_object is not None and usage.source != "none":
        part.metered_vendor_id = metered_object.vendor_id
        part.metered_object = metered_object.object_id
        part.metered_again = metered_object.is_retrieved
        part.metered_deferred = metered_object.is_deferred
    return part


def encode_open(part: OpenPart) -> bytes:
    """Return the open part as a JSON object."""
    return _encode(part)


def encode_whole(opened: bytes, part: ClosePart) -> bytes:
    """Return the whole row as a JSON object; `opened` is what `encode_open` gave."""
    try:
        closed = _encode(part)
    except UnicodeEncodeError:  # half a surrogate in a text that a vendor sent
        part.model_served = part.finish_reason = part.service_tier = None
        part.flags = (*part.flags, Flag.BAD_TEXT.value)
        closed = _encode(part)
    return b"%b,%b" % (opened[:-1], closed[1:])


def rfc3339(unix_seconds: float) -> str:
    """Return a time as RFC 3339 in UTC, with microseconds: '2026-11-24T12:00:00.000000Z'."""
    second, microseconds = divmod(round(unix_seconds * _MICROSECONDS), _MICROSECONDS)
    return f"{_whole_second(second)}.{microseconds:06}Z"


@lru_cache(maxsize=_SECONDS_KEPT)
def _whole_second(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
