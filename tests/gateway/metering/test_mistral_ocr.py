import json

import pytest

from gateway.metering.meter import HEAD_BYTES_MAX, TAIL_BYTES_MAX, MeterFormat, open_meter
from gateway.metering.usage import Flag, Usage


def measured(body: bytes, *, complete: bool = True) -> Usage:
    meter = open_meter(
        MeterFormat.MISTRAL_OCR,
        stream=False,
        status=200,
        content_type=b"application/json",
        content_encoding=b"",
    )
    meter.feed(body)
    return meter.finish(complete=complete)


@pytest.mark.parametrize(
    ("reported", "pages", "source", "flags"),
    [
        ({"pages_processed": 29, "doc_size_bytes": 18810}, 29, "vendor", ()),
        ({"pages_processed": 0}, 0, "vendor", ()),
        ({"doc_size_bytes": 18810}, None, "none", ()),
        ({"pages_processed": -1}, None, "none", (Flag.BAD_NUMBER,)),
        (None, None, "none", ()),
    ],
)
def test_pages_are_counted(
    reported: dict[str, int] | None, pages: int | None, source: str, flags: tuple[str, ...]
) -> None:
    usage = measured(json.dumps({"pages": [], "model": "m", "usage_info": reported}).encode())
    assert (usage.pages, usage.source, usage.flags) == (pages, source, flags)
    assert usage.model_served == "m"
    assert usage.vendor_usage == (json.dumps(reported).encode() if reported else None)


def test_pages_behind_megabytes_of_pictures_are_found() -> None:
    pages = [{"images": [{"image_base64": "A" * (HEAD_BYTES_MAX + 2 * TAIL_BYTES_MAX)}]}]
    told = {"model": "m", "document_annotation": None, "usage_info": {"pages_processed": 29}}
    usage = measured(json.dumps({"pages": pages, **told}).encode())
    assert (usage.pages, usage.model_served, usage.source) == (29, "m", "vendor")


def test_an_answer_that_was_cut_tells_no_pages() -> None:
    body = json.dumps({"pages": [], "usage_info": {"pages_processed": 29}}).encode()
    assert measured(body[:-3], complete=False).pages is None


def test_an_error_inside_an_answer_is_told_in_whatever_it_comes() -> None:
    for content_type, body in (
        (b"application/json", b'{"error":"no"}'),
        (b"text/event-stream", b'data: {"error":"no"}\n\n'),
    ):
        meter = open_meter(
            MeterFormat.MISTRAL_OCR,
            stream=False,
            status=200,
            content_type=content_type,
            content_encoding=b"",
        )
        meter.feed(body)
        usage = meter.finish(complete=True)
        assert meter.stream_error
        assert (usage.flags, usage.source) == ((Flag.IN_STREAM_ERROR,), "none")


def test_what_is_no_json_is_flagged() -> None:
    usage = measured(b'{"usage_info":')
    assert (usage.pages, usage.source, usage.flags) == (None, "none", (Flag.UNREADABLE,))
