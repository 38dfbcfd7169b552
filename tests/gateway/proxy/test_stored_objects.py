import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BodyInvalid
from gateway.proxy.stored_objects import Named, item_ids, named_in_line, named_objects

FILES_API = "https://generativelanguage.googleapis.com/v1beta/files/abc"


def named(document: object, *, items_in: str | None = "input") -> set[Named]:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return set(named_objects(text, items_in=items_in))


@pytest.mark.parametrize(
    "document",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"conversation_id": "any name at all"},
        {"conversation": {"id": "conv_1"}},
        {"prompt": {"id": "pmpt_1", "version": "2"}},
        {"prompt_cache_options": {"comparison_response_id": "resp_1"}},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
        {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]},
        {"tools": [{"container": {"type": "auto", "file_ids": ["file-1"]}}]},
        {"tools": [{"environment": {"type": "container_reference", "container_id": "c"}}]},
        {"tools": [{"environment": {"skills": [{"type": "skill_reference", "skill_id": "s"}]}}]},
        {"tools": [{"type": "image_generation", "input_image_mask": {"file_id": "file-1"}}]},
        {"input_file_id": "file-1"},
        {"messages": [{"content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
        {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]},
        {"audio": {"voice": {"id": "voice_1"}, "format": "mp3"}},
        {"messages": [{"content": [{"type": "container_upload", "file_id": "file_1"}]}]},
        {"messages": [{"content": [{"source": {"type": "file", "file_id": "file_1"}}]}]},
        {"container": "container_1"},
        {"container": {"id": "container_1", "skills": []}},
        {"container": {"skills": [{"type": "custom", "skill_id": "skill_1"}]}},
        {"cachedContent": "cachedContents/1"},
        {"cached_content": "cachedContents/1"},
        {"extra_body": {"google": {"cached_content": "cachedContents/1"}}},
        {"contents": [{"parts": [{"fileData": {"fileUri": FILES_API}}]}]},
        {"contents": [{"parts": [{"file_data": {"file_uri": FILES_API}}]}]},
        {"contents": [{"parts": [{"functionResponse": {"parts": [{"fileUri": FILES_API}]}}]}]},
        {"generateContentRequest": {"cachedContent": "cachedContents/1"}},
        {"tools": [{"fileSearch": {"fileSearchStoreNames": ["fileSearchStores/1"]}}]},
        {"previous_interaction_id": "1"},
    ],
    ids=json.dumps,
)
def test_what_names_a_stored_object_is_found(document: dict[str, Any]) -> None:
    (found,) = named(document, items_in=None)
    assert f'"{found.param}"' in json.dumps(document)
    assert found.object_id in json.dumps(document)


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "msg_1"},
        {"id": "msg_1"},
        {"type": None, "id": "msg_1"},
        {"id": "msg_1", "role": "user"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
        {"type": "reasoning", "id": "rs_1", "content": [{"text": "a"}]},
        {"type": "reasoning", "id": "1", "content": []},
        {"type": "image_generation_call", "id": "ig_1"},
        {"type": "file_search_call", "id": "fs_1", "results": None},
    ],
    ids=json.dumps,
)
def test_an_item_that_the_vendor_would_look_up_is_found(item: dict[str, Any]) -> None:
    items = [{"role": "user", "content": "hi"}, item]
    assert named({"input": items}) == {Named("input", item["id"])}
    assert named({"items": items}, items_in="items") == {Named("items", item["id"])}
    assert not named({"items": items})


@pytest.mark.parametrize(
    "document",
    [
        {"previous_response_id": None, "conversation": None, "prompt": None, "container": None},
        {"prompt": "say this is a test"},
        {"prompt": ["say", "this"]},
        {"store": True, "background": True, "prompt_cache_key": "file_id"},
        {"input": 'my file_id is "file_id" and the \\u0066ile_id too'},
        {"input": [{"type": "message", "id": "msg_1", "role": "assistant", "content": []}]},
        {"input": [{"id": "msg_1", "role": "user", "content": "hi"}]},
        {"input": [{"type": "function_call", "id": "fc_1", "call_id": "c", "arguments": "{}"}]},
        {"input": [{"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAA"}]},
        {"input": [{"type": "reasoning", "id": "1", "content": [{"text": "a"}]}]},
        {"input": [{"type": "image_generation_call", "id": "ig_1", "result": "iVBO"}]},
        {"input": ["text", ["text"]]},
        {"input": [{"type": ["a"], "id": "1", "content": "x"}, {"type": {"id": "a"}}]},
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]},
        {"tools": [{"type": "file_search", "vector_store_ids": []}]},
        {"tools": [{"parameters": {"properties": {"file_id": {"type": "string", "id": "x"}}}}]},
        {"tools": [{"input_schema": {"properties": {"a": {"examples": [{"file_id": "x"}]}}}}]},
        {"tools": [{"function": {"description": "x", "conversation": {"type": "string"}}}]},
        {"messages": [{"content": [{"type": "tool_use", "id": "t", "input": {"file_id": "x"}}]}]},
        {"contents": [{"parts": [{"functionCall": {"args": {"file_id": "x"}}}]}]},
        {"metadata": {"conversation": "my own"}},
        {"audio": {"voice": "alloy", "format": "mp3"}},
        {"container": {"skills": [{"type": "anthropic", "skill_id": "pptx"}]}},
        {"contents": [{"parts": [{"fileData": {"fileUri": "https://youtu.be/x"}}]}]},
        {"contents": [{"parts": [{"fileData": {"fileUri": "gs://bucket/film.mp4"}}]}]},
    ],
    ids=json.dumps,
)
def test_what_names_nothing_has_no_names(document: dict[str, Any]) -> None:
    assert not named(document)


@pytest.mark.parametrize(
    "uri",
    [
        "files/abc",
        "https://GENERATIVELANGUAGE.googleapis.com/v1beta/files/abc",
        "https://generativelanguage.googleapis.com:443/v1beta/files/abc",
        "https://x@generativelanguage.googleapis.com/v1beta/files/abc",
        "https://%67enerativelanguage.googleapis.com/v1beta/files/abc",
        "https://generative\tlanguage.googleapis.com/v1beta/files/abc",
        " https://generativelanguage.googleapis.com/v1beta/files/abc",
        "https://generativelanguage\u3002googleapis.com/v1beta/files/abc",
        "//generativelanguage.googleapis.com/v1beta/files/abc",
    ],
)
def test_a_uri_that_may_be_of_the_files_api_is_found_as_it_stands(uri: str) -> None:
    due = "files/abc" if uri == "files/abc" else uri
    document = {"contents": [{"parts": [{"fileData": {"fileUri": uri}}]}]}
    assert named(document) == {Named("fileUri", due)}


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_a_plain_uri_of_the_files_api_names_its_file(version: str) -> None:
    uri = f"https://generativelanguage.googleapis.com/{version}/files/abc-1"
    assert named({"file_data": {"file_uri": uri}}) == {Named("file_uri", "files/abc-1")}


@pytest.mark.parametrize(
    "text",
    [
        rb'{"previous_r\u0065sponse_id":"resp_1"}',
        rb'{"\u0070\u0072\u006f\u006d\u0070\u0074":{"id":"pmpt_1"}}',
        rb'{"input":[{"\u0069d":"msg_1"}]}',
        rb'{"input":[{"type":"item\u005freference","id":"msg_1"}]}',
        rb'{"prompt":{"i\u0064":"pmpt_1"}}',
        rb'{"file_id":"\ud83d"}',
        b'{"prompt" \n : \n { "id":"pmpt_1"}}',
        b'{"previous_response_id":"resp_1","previous_response_id":null}',
        b'{"input":[{"id":"msg_1","id":null}]}',
        b'{"input":[{"id":"msg_1","type":"message","type":null,"content":"a","content":""}]}',
        b'{"input":[{"type":"item_reference","type":"message","id":"msg_1","content":"a"}]}',
        b'{"input":[{"id":"msg_1"}],"input":"hi"}',
        b'{"x":{"type":"tool_use","type":"document","input":{"file_id":"file-1"}}}',
        b'{"type":"tool_use","input":[{"content":[{"file_id":"file-1"}]}]}',
        b'{"input":[{"type":"item_reference","id":"msg_1"}]}',
        b'{"n":' + b"9" * 5000 + b',"e":1e999,"file_id":"file-1"}',
        '{"file_id":"file-ü"}'.encode(),
    ],
)
def test_no_way_of_writing_hides_a_name(text: bytes) -> None:
    assert named(text)


def test_what_is_nested_too_deeply_to_be_walked_is_refused() -> None:
    with pytest.raises(BodyInvalid):
        named(b'{"file_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "input", "content", "tools"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(nested, nested, st.integers(0, 3))
def test_a_name_is_found_wherever_it_stands(before: object, after: object, depth: int) -> None:
    document: Any = {"a": before, "file_id": "file-1", "b": after}
    for _ in range(depth):
        document = {"content": [before, document], "tools": after}
    assert named({"model": "m", "input": document}) == {Named("file_id", "file-1")}


def test_both_values_of_a_member_are_taken_and_all_of_a_list() -> None:
    text = b'{"previous_response_id":"r1","previous_response_id":"r2","file_ids":["f1",["f2"]]}'
    assert {one.object_id for one in named(text)} == {"r1", "r2", "f1", "f2"}


def test_a_body_names_a_bounded_number() -> None:
    with pytest.raises(BodyInvalid):
        named({"file_ids": [str(number) for number in range(1001)]})


@pytest.mark.parametrize(
    ("line", "object_id"),
    [
        (b'{"body":{"input":[{"type":"item_reference","id":"msg_1"}]}}', "msg_1"),
        (b'{"body":{"type":"tool_use","input":[{"content":[{"file_id":"f"}]}]}}', "f"),
        (b'{"body":{"messages":[{"content":[{"file":{"file_id":"f"}}]}]}}', "f"),
        (b'{"b\\u006fdy":{"type":"tool_use","input":[{"file_id":"f"}]}}', "f"),
        (b'{"body":{"previous_response_id":"r"},"body":{}}', "r"),
        (b'{"custom_id":"1","file_id":"f"}', "f"),
    ],
)
def test_a_line_of_a_batch_is_read_in_its_body_and_beside_it(line: bytes, object_id: str) -> None:
    assert [one.object_id for one in named_in_line(line)] == [object_id]
    assert not named_in_line(b'{"custom_id":"1","body":{"model":"m","messages":[]}}')


def test_items_have_ids_that_their_sender_gave() -> None:
    text = b'{"items":[{"id":"a"},{"i\\u0064":"b","content":{"id":"c"}}],"items":[{"id":"d"},7]}'
    assert item_ids(text, items_in="items") == {"a", "b", "d"}
    for empty in (b'{"items":[{"content":"x"}]}', b'{"items":{"id":"a"}}', b'["id"]'):
        assert item_ids(empty, items_in="items") == set()
