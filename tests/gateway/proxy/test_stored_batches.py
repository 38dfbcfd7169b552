import pytest

from gateway.errors import BodyInvalid
from gateway.proxy.stored_batches import batch_models, models_of_line


def test_every_model_is_read_however_it_is_written() -> None:
    text = rb'{"requests":[{"params":{"model":"a","m\u006fdel":"b"}},{"params":{"model":"c"}}]}'
    assert batch_models(text) == {"a", "b", "c"}
    twice = b'{"requests":[{"params":{"model":"a"}}],"requests":[{"params":{"model":"b"}}]}'
    assert batch_models(twice) == {"a", "b"}
    assert batch_models(b'{"requests":[]}') == set()


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b'{"requests":[{"params":{}}]}',
        b'{"requests":[{"params":{"model":7}}]}',
        b'{"requests":[{"params":{"model":""}}]}',
        b'{"requests":' + b"[" * 100_000,
    ],
)
def test_a_request_without_a_model_is_refused(text: bytes) -> None:
    with pytest.raises(BodyInvalid):
        batch_models(text)


@pytest.mark.parametrize(
    ("line", "models"),
    [
        (b'{"body":{"model":"a","messages":[]}}', {"a"}),
        (b'{"body":{"model":"a","model":"b"}}', {"a", "b"}),
        (b'{"body":{"model":"a"},"body":{"model":"b"}}', {"a", "b"}),
        (b'{"body":{"model":"a","m\\u006fdel":"b"}}', {"a", "b"}),
        (b'{"b\\u006fdy":{"model":"b"},"body":{"model":"a"}}', {"a", "b"}),
        (b'{"body":{"messages":[{"content":"\\ud83d"}],"model":"a"}}', {"a"}),
        (b'{"body":{"input":"model"}}', {None}),
        (b'{"body":{"model":"a"},"body":{}}', {"a", None}),
        (b'{"model":"a"}', {None}),
        (b'{"body":[]}', {None}),
    ],
)
def test_a_line_names_its_models_however_they_are_written(
    line: bytes, models: set[str | None]
) -> None:
    assert models_of_line(line) == models


@pytest.mark.parametrize(
    "line",
    [
        '{"body":{"model":"a"}}'.encode("utf-16-le"),
        b'\xef\xbb\xbf{"body":{"model":"a"}}',
        b'{"body":{"model":"a","input":"\xff"}}',
        b'{"body":{"model":"a"}}\r{"body":{"model":"b"}}',
        b'{"body":{"model":"a"}',
        b'{"body":{"model":7}}',
        b'{"body":{"model":""}}',
        b'["body"]',
        b"[" * 100_000,
    ],
)
def test_a_line_that_may_be_read_in_another_way_is_refused(line: bytes) -> None:
    with pytest.raises(BodyInvalid):
        models_of_line(line)
