import json

import pytest

from gateway.proxy.stored_ids import Stored
from gateway.proxy.stored_pages import Page, PageUnreadable, without_results_host
from gateway.proxy.stored_paths import Kind

PAGE = (
    b'{"object": "list", "data": [{"id": "a",  "n": 1.0}, {"id": "b"}, {"id":"c", "x": "\\u00e4"}],'
    b' "first_id": "a", "last_id": "c", "has_more": true}'
)


def test_ones_own_rows_stay_as_they_came() -> None:
    page = Page(PAGE, rows_in="data")
    assert page.ids == ["a", "b", "c"]
    kept = page.only({"a", "c"})
    assert b'{"id": "a",  "n": 1.0},{"id":"c", "x": "\\u00e4"}' in kept
    assert json.loads(page.only({"b"})) == {
        "object": "list",
        "data": [{"id": "b"}],
        "first_id": "b",
        "last_id": "b",
        "has_more": True,
    }


def test_a_page_may_be_left_empty_and_not_be_the_last() -> None:
    document = json.loads(Page(PAGE, rows_in="data").only(set()))
    assert (document["data"], document["has_more"]) == ([], True)
    assert (document["first_id"], document["last_id"]) == (None, None)


def test_gemini_lists_by_name() -> None:
    text = b'{"files":[{"name":"files/a"},{"name":"files/b"},{"id":"x"}],"nextPageToken":"t"}'
    page = Page(text, rows_in="files")
    assert json.loads(page.only({"files/b", ""})) == {
        "files": [{"name": "files/b"}],
        "nextPageToken": "t",
    }
    assert Page(b"{}", rows_in="files").only({"files/b"}) == b"{}"


def test_batches_of_ones_own_tell_of_their_results() -> None:
    text = b'{"data":[{"id":"a","output_file_id":"f"},{"id":"b","output_file_id":"g"}]}'
    assert Page(text, rows_in="data").parts({"a"}) == [Stored("f", Kind.BATCH_OUTPUT, "a")]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b'{"data":{}}', b'{"data":7}', b'{"data":[{"id":"a"}', b"\xff"]
)
def test_what_is_no_page_is_not_passed_on(text: bytes) -> None:
    with pytest.raises(PageUnreadable):
        Page(text, rows_in="data").only({"a"})


def test_rows_that_are_no_objects_are_nobodys() -> None:
    page = Page(b'{"data":["a",{"id":7},null,{}]}', rows_in="data")
    assert json.loads(page.only({"a", "7", ""}))["data"] == []


def test_results_are_fetched_where_they_were_asked_for() -> None:
    text = b'{"id":"b","results_url": "https://api.anthropic.com/v1/messages/batches/b/results"}'
    assert json.loads(without_results_host(text)) == {
        "id": "b",
        "results_url": "/v1/messages/batches/b/results",
    }
    for same in (b'{"results_url":null}', b'{"results_url":"https://a.example/elsewhere"}'):
        assert without_results_host(same) == same
