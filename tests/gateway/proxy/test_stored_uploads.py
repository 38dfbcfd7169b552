import json
from typing import Any

import pytest

from gateway.errors import BodyInvalid, GatewayError, UnsupportedBody
from gateway.proxy.stored_objects import Named
from gateway.proxy.stored_uploads import Upload, check_resumed, read_form, read_gemini_upload

FORM = "multipart/form-data; boundary=x"
RELATED = 'multipart/related; boundary="x"'
NAMES_ONE = b'{"body":{"previous_response_id":"resp_1"}}\n{"body":{"file_id":"f"}}'


def part(disposition: bytes, value: bytes) -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--x--\r\n"


PURPOSE = part(b'name="purpose"', b"batch")
FILE = part(b'name="file"; filename="a.jsonl"', NAMES_ONE)


def test_a_file_of_a_batch_is_read_line_by_line() -> None:
    due = {Named("previous_response_id", "resp_1"), Named("file_id", "f")}
    for content_type in (FORM, 'Multipart/Form-Data;boundary="x"'):
        upload = read_form(form(PURPOSE, FILE), content_type)
        assert (upload.is_batch_input, set(upload.named)) == (True, due)


@pytest.mark.parametrize(
    "body",
    [
        form(part(b'name="purpose"', b"user_data"), FILE),
        form(FILE),
        form(PURPOSE),
        form(PURPOSE, FILE, FILE),
        form(PURPOSE, PURPOSE, FILE),
        form(part(b'name="purpose"; name="x"', b"batch"), FILE),
        form(part(b"name=purpose", b"batch"), FILE),
        form(part(b'name="file"; filename="a\\"; name=\\"b"', b"{}"), PURPOSE),
        form(part(b"name*=utf-8''file", b"{}"), PURPOSE),
        form(PURPOSE, FILE.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n")),
        b"preamble\r\n" + form(PURPOSE, FILE),
        form(PURPOSE, FILE) + b"epilogue",
        form(PURPOSE, FILE)[:-6],
        form(PURPOSE, FILE).replace(b"\r\n", b"\n"),
        b"",
    ],
)
def test_a_form_that_may_be_read_in_another_way_begins_no_batch(body: bytes) -> None:
    assert read_form(body, FORM) == Upload()


def test_a_line_that_cant_be_read_is_refused() -> None:
    broken = part(b'name="file"; filename="a"', b'{"file_id":"a"} {"x":1}')
    with pytest.raises(BodyInvalid):
        read_form(form(PURPOSE, broken), FORM)


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data", RELATED])
def test_only_forms_upload_files(content_type: str) -> None:
    with pytest.raises(UnsupportedBody):
        read_form(form(PURPOSE, FILE), content_type)


def related(metadata: object, more: bytes = b"") -> bytes:
    told = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    first = b"--x\r\nContent-Type: application/json" + more + b"\r\n\r\n" + told
    return first + b"\r\n--x\r\nContent-Type: text/plain\r\n\r\nhi\r\n--x--"


START = [(b"x-goog-upload-protocol", b"resumable"), (b"x-goog-upload-command", b"start")]


def check(body: bytes = b"", **more: Any) -> Upload:
    options = {"content_type": RELATED, "headers": [], "query": b"uploadType=multipart", **more}
    return read_gemini_upload(body, **options)


def test_gemini_takes_a_file_in_one_request() -> None:
    check(related({"file": {"displayName": "a"}}))
    check(b"any bytes", query=b"uploadType=media&key=k")
    check(b"any bytes", query=b"", headers=[(b"x-goog-upload-protocol", b"raw")])
    multipart = [(b"x-goog-upload-protocol", b"multipart")]
    check(related({}), query=b"alt=json", headers=multipart)


def test_gemini_begins_an_upload_of_several_requests() -> None:
    for body in (b"", b"{}", b'{"file":{"displayName":"a","sizeBytes":5}}'):
        assert check(body, query=b"key=k", headers=START).begins
    assert not check(b"any", query=b"uploadType=media").begins


@pytest.mark.parametrize("said", [b"upload", b"upload, finalize", b"Query", b"cancel", b"finalize"])
def test_an_upload_goes_on_by_what_its_header_says(said: bytes) -> None:
    query = b"upload_id=a&upload_protocol=resumable"
    check_resumed(headers=[(b"x-goog-upload-command", said)], query=query)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([], b"upload_id=a"),
        (START, b"upload_id=a"),
        ([(b"x-goog-upload-command", b"upload, start")], b"upload_id=a"),
        ([(b"x-goog-upload-command", b"")], b"upload_id=a"),
        ([(b"x-goog-upload-command", b"upload")], b"upload_id=a&uploadType=multipart"),
        (
            [(b"x-goog-upload-command", b"upload"), (b"x-goog-upload-protocol", b"raw")],
            b"upload_id=a",
        ),
    ],
)
def test_what_may_mean_another_upload_does_not_go_on(
    headers: list[tuple[bytes, bytes]], query: bytes
) -> None:
    with pytest.raises(UnsupportedBody):
        check_resumed(headers=headers, query=query)


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (related({"file": {"name": "files/a"}}), {}),
        (related(b'{"file":{"n\\u0061me":"files/a"}}'), {}),
        (related({"file": {}}, b"\r\nContent-Transfer-Encoding: base64"), {}),
        (related(b"{"), {}),
        (related(b'{"file":{"name":"files/a"},"file":{}}'), {}),
        (b'{"file":{"name":"files/a"}}', {"query": b"", "headers": START}),
        (b'{"file":{"name":"files/a","name":null}}', {"query": b"", "headers": START}),
        (b"file.name=files/a", {"query": b"", "headers": START}),
        (b"{}", {"query": b"name=files/a", "headers": START}),
        (b"{}", {"query": b"uploadType=multipart", "headers": START}),
        (b"{}", {"query": b"", "headers": [*START, (b"x-goog-upload-command", b"finalize")]}),
        (related({}) + b"more", {}),
        (b"", {}),
        (related({}), {"content_type": "application/json"}),
        (b"", {"query": b""}),
        (b"", {"query": b"uploadType=resumable"}),
        (b"", {"query": b"uploadType=media&uploadType=multipart"}),
        (b"", {"query": b"uploadType=media&file.name=files/a"}),
        (b"", {"query": b"uploadType=media", "headers": [(b"x-goog-upload-command", b"start")]}),
        (b"", {"headers": [(b"x-goog-upload-protocol", b"resumable")], "query": b""}),
    ],
)
def test_other_uploads_and_names_of_ones_own_are_refused(body: bytes, more: dict[str, Any]) -> None:
    with pytest.raises(GatewayError) as caught:
        check(body, **more)
    assert caught.value.status in (400, 415)
