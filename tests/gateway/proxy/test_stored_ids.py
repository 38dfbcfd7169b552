import gzip
import json

import pytest

from gateway.proxy.stored_ids import Stored, open_watcher
from gateway.proxy.stored_paths import Answer, Kind

STREAM = (
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1"}}\n\n'
    b'event: x\ndata: {"type":"response.output_item.added","item":{"id":"msg_1"}}\n\n'
    b'event: x\ndata: {"type":"response.output_text.delta","delta":"{\\"id\\":\\"resp_9\\"}"}\n\n'
    b'event: x\ndata: {"type":"response.output_item.done","item":{"id":"ci_1","container_id":"c"}}'
    b"\n\n"
)
TOLD = [
    Stored("resp_1", Kind.RESPONSE, None, is_whole=True),
    Stored("msg_1", Kind.ITEM),
    Stored("ci_1", Kind.ITEM),
    Stored("c", Kind.CONTAINER),
]


def watched(answer: Answer, *pieces: bytes, kind: bytes, encoding: bytes = b"") -> list[Stored]:
    watcher = open_watcher(answer, content_type=kind, content_encoding=encoding)
    assert watcher is not None
    found = [one for piece in pieces for one in watcher.feed(piece)]
    return found + watcher.finish()


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_stream_tells_however_it_is_cut(size: int) -> None:
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert watched(Answer.RESPONSE, *pieces, kind=b"text/event-stream; charset=utf-8") == TOLD


def test_the_first_event_tells_before_the_rest_has_come() -> None:
    watcher = open_watcher(Answer.RESPONSE, content_type=b"text/event-stream", content_encoding=b"")
    assert watcher is not None
    assert watcher.feed(STREAM[: STREAM.index(b"\n\n") + 2]) == TOLD[:1]


@pytest.mark.parametrize(
    ("answer", "document", "ids"),
    [
        (Answer.RESPONSE, {"id": "r", "output": [{"id": "m"}], "previous_response_id": "p"}, "rm"),
        (Answer.CHAT_COMPLETION, {"id": "c", "choices": [{"id": "x"}]}, "c"),
        (Answer.MESSAGE, {"id": "m", "container": {"id": "k"}, "content": [{"id": "t"}]}, "k"),
        (Answer.CONVERSATION, {"id": "v"}, "v"),
        (Answer.ITEMS, {"data": [{"id": "a"}, {"id": "b"}]}, "ab"),
        (Answer.FILE, {"id": "f"}, "f"),
        (Answer.BATCH, {"id": "b", "output_file_id": "o", "error_file_id": "e"}, "boe"),
        (Answer.CACHED_CONTENT, {"name": "n", "id": "x"}, "n"),
        (Answer.GEMINI_FILE, {"file": {"name": "g"}, "name": "x"}, "g"),
        (Answer.INTERACTION, {"id": "i"}, "i"),
        (Answer.FILE, {"id": 7}, ""),
        (Answer.FILE, {"id": "has space"}, ""),
        (Answer.FILE, ["id"], ""),
        (Answer.BATCH, {"output_file_id": "o"}, ""),
    ],
)
def test_an_answer_in_one_piece_tells_at_its_own_places(
    answer: Answer, document: object, ids: str
) -> None:
    body = json.dumps(document).encode()
    plain = watched(answer, body[:5], body[5:], kind=b"application/json")
    assert "".join(one.object_id for one in plain) == ids
    packed = watched(answer, gzip.compress(body), kind=b"application/json", encoding=b"gzip")
    assert packed == plain


def test_a_long_or_cut_answer_tells_what_its_head_has() -> None:
    long = json.dumps({"id": "r", "output": [{"id": "m", "x": "y" * 2_000_000}]}).encode()
    assert [one.object_id for one in watched(Answer.RESPONSE, long, kind=b"application/json")] == [
        "r"
    ]
    cut = b'{"id":"r","output":[{"id":"m'
    assert [one.object_id for one in watched(Answer.RESPONSE, cut, kind=b"application/json")] == [
        "r"
    ]


@pytest.mark.parametrize("body", [b"", b"nonsense", b'{"id":', b"\xff\xfe", b"[" * 10_000])
def test_what_cant_be_read_names_nothing(body: bytes) -> None:
    assert watched(Answer.RESPONSE, body, kind=b"application/json") == []
    assert watched(Answer.RESPONSE, body, kind=b"text/event-stream") == []
    assert watched(Answer.RESPONSE, body, kind=b"application/json", encoding=b"gzip") == []


def test_an_unknown_encoding_is_not_watched() -> None:
    assert (
        open_watcher(Answer.FILE, content_type=b"application/json", content_encoding=b"lzma")
        is None
    )
