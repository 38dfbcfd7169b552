import json
from typing import Any

import pytest

from gateway.metering.meter import HEAD_BYTES_MAX, TAIL_BYTES_MAX, Meter, MeterFormat, open_meter
from gateway.metering.usage import METERS, Flag, Usage


def metering(content_type: str = "application/json", *, stream: bool = False) -> Meter:
    return open_meter(
        MeterFormat.OPENAI_AUDIO,
        stream=stream,
        status=200,
        content_type=content_type.encode(),
        content_encoding=b"",
    )


def told(usage: Usage) -> dict[str, int | float]:
    return {name: n for name in METERS if (n := getattr(usage, name)) is not None}


def measured(document: dict[str, Any]) -> Usage:
    meter = metering()
    meter.feed(json.dumps(document).encode())
    return meter.finish(complete=True)


def streamed(events: bytes) -> Meter:
    meter = metering("text/event-stream", stream=True)
    for at in range(0, len(events), 7):
        meter.feed(events[at : at + 7])
    return meter


@pytest.mark.parametrize(
    ("reported", "meters", "flags"),
    [
        pytest.param({"type": "duration", "seconds": 7}, {"seconds": 7}, (), id="time"),
        pytest.param({"type": "duration", "seconds": 7.25}, {"seconds": 7.25}, (), id="fractions"),
        pytest.param(
            {
                "type": "tokens",
                "input_tokens": 14,
                "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
                "output_tokens": 5,
                "total_tokens": 19,
            },
            {"input_tokens": 14, "audio_input_tokens": 10, "output_tokens": 5},
            (),
            id="tokens",
        ),
        pytest.param(
            {
                "input_tokens": 14,
                "input_tokens_details": {"audio_tokens": 10, "cached_tokens": 6},
                "output_tokens": 5,
                "seconds": 3.5,
            },
            {
                "input_tokens": 8,
                "cache_read_tokens": 6,
                "audio_input_tokens": 10,
                "output_tokens": 5,
                "seconds": 3.5,
            },
            (),
            id="tokens and time, from a cache, in the plural",
        ),
        pytest.param(
            {
                "prompt_audio_seconds": 3,
                "prompt_tokens": 5,
                "total_tokens": 400,
                "completion_tokens": 20,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 375},
            },
            {
                "input_tokens": 380,
                "cache_read_tokens": 0,
                "audio_input_tokens": 375,
                "output_tokens": 20,
                "seconds": 3,
            },
            (),
            id="Mistral, whose prompt leaves the audio out",
        ),
        pytest.param(
            {"input_tokens": 3, "output_tokens": 4, "total_tokens": 9},
            {"input_tokens": 3, "output_tokens": 4},
            (Flag.TOTAL_DIFFERS,),
            id="a total that is more",
        ),
        pytest.param(
            {"input_tokens": 3, "input_token_details": {"audio_tokens": 9}},
            {"input_tokens": 3, "audio_input_tokens": 3},
            (Flag.AUDIO_EXCEEDS_INPUT,),
            id="more audio than input",
        ),
        pytest.param(
            {"seconds": -1, "input_tokens": 1.5},
            {},
            (Flag.BAD_NUMBER,),
            id="absurd numbers",
        ),
    ],
)
def test_what_was_heard_is_counted(
    reported: dict[str, Any], meters: dict[str, int | float], flags: tuple[str, ...]
) -> None:
    usage = measured({"text": "hi", "usage": reported})
    assert told(usage) == meters
    assert usage.flags == flags
    assert usage.source == ("vendor" if meters else "none")
    assert json.loads(usage.vendor_usage or b"") == reported


@pytest.mark.parametrize("duration", [8.47, "8.47"], ids=["number", "text"])
def test_the_length_of_a_recording_counts_where_no_usage_is_told(duration: object) -> None:
    usage = measured({"task": "transcribe", "duration": duration, "text": "hi", "segments": []})
    assert told(usage) == {"seconds": 8.47}
    assert (usage.source, usage.vendor_usage) == ("vendor", b'{"duration":%b}' % (
        json.dumps(duration).encode()
    ))  # fmt: skip
    both = measured({"duration": duration, "usage": {"type": "duration", "seconds": 9}})
    assert told(both) == {"seconds": 9}


@pytest.mark.parametrize("duration", ["long", "nan", None, -1])
def test_a_length_that_is_none_is_not_told(duration: object) -> None:
    usage = measured({"duration": duration, "text": "hi"})
    assert (told(usage), usage.source) == ({}, "none")


def test_a_usage_behind_megabytes_of_text_is_found() -> None:
    text = "a" * (HEAD_BYTES_MAX + 2 * TAIL_BYTES_MAX)
    usage = measured({"model": "m", "text": text, "usage": {"type": "duration", "seconds": 7}})
    assert (told(usage), usage.model_served) == ({"seconds": 7}, "m")
    usage = measured({"duration": 7, "text": text, "segments": []})
    assert told(usage) == {"seconds": 7}


@pytest.mark.parametrize(
    ("events", "is_over"),
    [
        pytest.param(
            b'data: {"type":"transcript.text.delta","delta":"h"}\n\ndata: {"type":'
            b'"transcript.text.done","text":"h","usage":{"input_tokens":3,"output_tokens":4}}\n\n',
            True,
            id="a transcript",
        ),
        pytest.param(
            b'data: {"type":"speech.audio.delta","audio":"AAAA"}\n\ndata: {"type":'
            b'"speech.audio.done","usage":{"input_tokens":3,"output_tokens":4}}\n\n',
            True,
            id="speech",
        ),
        pytest.param(
            b'event: speech.audio.done\ndata: {"usage":{"input_tokens":3,"output_tokens":4}}\n\n',
            True,
            id="a type that only the event's name tells",
        ),
        pytest.param(
            b'data: {"event":"speech.audio.done","data":{"usage":{"prompt_tokens":3,'
            b'"completion_tokens":4,"total_tokens":7}}}\n\n',
            True,
            id="Mistral's speech",
        ),
        pytest.param(
            b'event: transcription.done\r\ndata: {"type":"transcription.done","model":"v","text":'
            b'"h","usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\r\n\r\n',
            True,
            id="Mistral's transcript, in CRLF",
        ),
        pytest.param(
            b'data: {"type":"x.done","usage":{"input_tokens":3,"output_tokens":4}}\n\n'
            b"data: [DONE]\n\n",
            True,
            id="an end mark",
        ),
        pytest.param(
            b'data: {"type":"x.done","usage":{"input_tokens":3,"output_tokens":4}}\n\n',
            False,
            id="an end that nobody knows",
        ),
    ],
)
def test_a_stream_tells_its_usage_at_its_end(events: bytes, is_over: bool) -> None:  # noqa: FBT001
    meter = streamed(events)
    assert (meter.is_over, meter.saw_end) == (is_over, is_over)
    usage = meter.finish(complete=True)
    assert told(usage) == {"input_tokens": 3, "output_tokens": 4}


def test_a_stream_that_was_cut_has_no_end() -> None:
    meter = streamed(b'data: {"type":"transcript.text.delta","delta":"h"}\n\n')
    assert not meter.saw_end
    assert meter.finish(complete=False).source == "none"


@pytest.mark.parametrize(
    "event", [b'data: {"error":{"message":"no"}}\n\n', b'event: error\ndata: {"type":"error"}\n\n']
)
def test_an_error_in_a_stream_is_told(event: bytes) -> None:
    meter = streamed(event)
    assert meter.stream_error
    assert not meter.saw_end
    assert meter.finish(complete=True).flags == (Flag.IN_STREAM_ERROR,)


@pytest.mark.parametrize(
    "content_type", ["audio/mpeg", "text/plain; charset=utf-8", "text/vtt", "application/x-subrip"]
)
@pytest.mark.parametrize("stream", [True, False])
def test_sound_and_plain_text_tell_nothing(content_type: str, stream: bool) -> None:  # noqa: FBT001
    meter = metering(content_type, stream=stream)
    meter.feed(b'{"usage":{"type":"duration","seconds":7}}')
    assert meter.saw_end
    assert meter.finish(complete=True) == Usage()


def test_json_under_another_name_is_read() -> None:
    for content_type in ("", "application/problem+json", "application/json; charset=utf-8"):
        meter = metering(content_type)
        meter.feed(b'{"usage":{"type":"duration","seconds":7}}')
        assert told(meter.finish(complete=True)) == {"seconds": 7}
