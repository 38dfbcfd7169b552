import json

import pytest

from gateway.metering.meter import Meter, MeterFormat, open_meter
from gateway.metering.usage import Flag


def metering(*, stream: bool = False) -> Meter:
    return open_meter(
        MeterFormat.OPENAI_EMBEDDINGS,
        stream=stream,
        status=200,
        content_type=b"text/event-stream" if stream else b"application/json",
        content_encoding=b"",
    )


@pytest.mark.parametrize(
    ("reported", "meters", "flags"),
    [
        pytest.param({"prompt_tokens": 8, "total_tokens": 8}, (8, None, None), (), id="OpenAI"),
        pytest.param({"total_tokens": 8}, (8, None, None), (), id="Voyage"),
        pytest.param(
            {"prompt_tokens": 8, "completion_tokens": 0, "total_tokens": 8},
            (8, 0, None),
            (),
            id="Mistral",
        ),
        pytest.param(
            {
                "input_tokens": 50,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                "output_tokens": 100,
                "total_tokens": 150,
            },
            (50, 100, 40),
            (),
            id="images",
        ),
        pytest.param(
            {"prompt_tokens": 8, "total_tokens": 9},
            (8, None, None),
            (Flag.TOTAL_DIFFERS,),
            id="a total that is more",
        ),
        pytest.param(
            {"prompt_tokens": -1, "total_tokens": None},
            (None, None, None),
            (Flag.BAD_NUMBER,),
            id="absurd numbers",
        ),
        pytest.param(None, (None, None, None), (), id="nothing"),
    ],
)
def test_what_was_put_in_is_counted(
    reported: object, meters: tuple[int | None, ...], flags: tuple[str, ...]
) -> None:
    meter = metering()
    meter.feed(json.dumps({"data": [], "model": "m", "usage": reported}).encode())
    assert meter.saw_end
    usage = meter.finish(complete=True)
    assert (usage.input_tokens, usage.output_tokens, usage.image_input_tokens) == meters
    assert (usage.model_served, usage.flags) == ("m", flags)


def test_a_usage_behind_megabytes_of_vectors_is_found() -> None:
    meter = metering()
    vectors = b'{"object":"list","data":[' + b'{"embedding":"' + b"A" * 3_000_000 + b'"}]'
    meter.feed(vectors + b',"model":"m","usage":{"prompt_tokens":8,"total_tokens":8}}')
    usage = meter.finish(complete=True)
    assert (usage.source, usage.input_tokens) == ("vendor", 8)


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_what_an_svg_took_is_kept_beside_the_picture(size: int) -> None:
    picture = {"input_tokens": 5, "output_tokens": 9, "total_tokens": 14}
    svg = {"model": "gpt-5", "input_tokens": 50, "output_tokens": 90, "total_tokens": 140}
    meter = metering()
    answer = {"data": [{"b64_json": "A" * size}], "svg_usage": svg, "usage": picture}
    meter.feed(json.dumps(answer).encode())
    usage = meter.finish(complete=True)
    assert (usage.input_tokens, usage.output_tokens) == (5, 9)
    assert usage.flags == (Flag.ITERATIONS_ON_TOP,)
    assert json.loads(usage.vendor_usage or b"") == {**picture, "svg_usage": svg}


def test_a_stream_of_images_ends_with_an_image() -> None:
    meter = metering(stream=True)
    meter.feed(b'data: {"type":"image_generation.partial_image","b64_json":"AAAA"}\n\n')
    saw_end = meter.saw_end
    meter.feed(
        b'data: {"type":"image_generation.completed","b64_json":"AAAA",'
        b'"usage":{"input_tokens":5,"output_tokens":9,"total_tokens":14}}\n\n'
    )
    assert (saw_end, meter.saw_end, meter.is_over) == (False, True, False)
    usage = meter.finish(complete=True)
    assert (usage.source, usage.input_tokens, usage.output_tokens) == ("vendor", 5, 9)


@pytest.mark.parametrize(
    "event", [b'data: {"error":{"message":"no"}}\n\n', b'event: error\ndata: {"type":"error"}\n\n']
)
def test_an_error_in_a_stream_of_images_is_told(event: bytes) -> None:
    meter = metering(stream=True)
    meter.feed(event)
    assert meter.stream_error
    assert not meter.saw_end
    assert meter.finish(complete=True).flags == (Flag.IN_STREAM_ERROR,)
