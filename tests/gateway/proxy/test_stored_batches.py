import pytest

from gateway.errors import BodyInvalid
from gateway.proxy.stored_batches import batch_models


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
