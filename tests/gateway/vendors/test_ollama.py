import json

import pytest

from gateway.vendors import ollama
from gateway.vendors.vendor import Model, ModelListUnreadable


def test_the_error_is_a_text() -> None:
    body = ollama.error_body(status=404, reason="no_route", message="No.", call_id="c")
    assert json.loads(body) == {"error": "No."}


def test_models_are_told_by_name_and_time() -> None:
    models = [Model(id="gemma3:1b", created=1_700_000_000), Model(id="llama3")]
    listed = ollama.models_list_body(models, has_more=True)
    assert ollama.model_ids(listed) == ["gemma3:1b", "llama3"]
    first = json.loads(ollama.model_body(models[0]))
    assert first["model"] == first["name"] == "gemma3:1b"
    assert first["modified_at"] == "2023-11-14T22:13:20Z"
    with pytest.raises(ModelListUnreadable):
        ollama.model_ids(b'{"error":"no"}')


def test_only_a_401_is_about_our_key() -> None:
    assert ollama.bad_key(401, b"unauthorized")
    assert not ollama.bad_key(404, b'{"error":"model \'x\' not found"}')
