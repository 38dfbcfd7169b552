import json

import pytest

from gateway.vendors import cohere
from gateway.vendors.vendor import Model, ModelListUnreadable


def test_the_error_has_a_message_and_the_calls_id() -> None:
    body = cohere.error_body(status=404, reason="no_route", message="No.", call_id="c", param="p")
    assert json.loads(body) == {"id": "c", "message": "No."}


def test_the_event_that_ends_a_stream_says_that_it_failed() -> None:
    event = cohere.message_end_event(reason="draining", message="Ends.\n", call_id="c")
    assert event.startswith(b'event: message-end\ndata: {"type":"message-end"')
    assert event.endswith(b"\n\n")
    data = json.loads(event.partition(b"data: ")[2])
    assert data["delta"] == {"error": "Ends.\n", "finish_reason": "ERROR"}


def test_models_are_told_by_name() -> None:
    models = [Model(id="command-a-03-2025"), Model(id="rerank-v3.5")]
    listed = cohere.models_list_body(models, has_more=True)
    assert cohere.model_ids(listed) == ["command-a-03-2025", "rerank-v3.5"]
    assert json.loads(cohere.model_body(models[0]))["name"] == "command-a-03-2025"
    with pytest.raises(ModelListUnreadable):
        cohere.model_ids(b'{"message":"no"}')


def test_only_a_401_is_about_our_key() -> None:
    body = b'{"id":"1","message":"Incorrect API key provided"}'
    assert cohere.bad_key(401, body)
    assert not cohere.bad_key(403, body)
