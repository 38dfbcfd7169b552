"""Uploads in several requests: the client is pointed back here, and only its org may go on."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.connect_guard import check_base_url
from gateway.errors import RequestInvalid, VendorBroke
from gateway.proxy.resumable_uploads import (
    BegunUpload,
    UploadTickets,
    object_id_of,
    upload_id_of,
    without_addresses,
)
from gateway.proxy.stored_paths import Kind
from tests.gateway.proxy.rig import KEY, Answer, Rig

DIGEST = bytes(range(32))
NOT_YOURS = (404, "not_yours")
START = ("X-Goog-Upload-Protocol: resumable", "X-Goog-Upload-Command: start")
LAST = ("X-Goog-Upload-Command: upload, finalize", "X-Goog-Upload-Offset: 0")


# ------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("query", "upload_id"),
    [(b"", None), (b"alt=json", None), (b"upload_id=", ""), (b"a=b&upload%5Fid=a%2Bb", "a+b")],
)
def test_a_query_names_one_upload_or_none(query: bytes, upload_id: str | None) -> None:
    assert upload_id_of(query) == upload_id


@pytest.mark.parametrize(
    "query",
    [
        b"upload_id=a&upload_id=a",
        b"upload_id=a&upload%5fid=b",
        b"upload_id=" + b"a" * 2_049,
        b"a&" * 40,
    ],
)
def test_a_query_that_may_name_another_upload_is_refused(query: bytes) -> None:
    with pytest.raises(RequestInvalid):
        upload_id_of(query)


def query_of(ticket: str | None, upload_id: str = "u1") -> bytes:
    return f"upload_id={upload_id}&kaixu_upload={ticket}".encode()


def test_a_ticket_is_good_for_one_upload_by_any_key_that_is_here() -> None:
    keys = [b"old"]
    tickets = UploadTickets(lambda: keys)
    ticket = tickets.issue(DIGEST, "u1")
    assert ticket is not None
    assert tickets.open(query_of(ticket)) == DIGEST
    assert tickets.open(query_of(ticket, "u2")) is None
    keys.insert(0, b"new")
    assert tickets.open(query_of(ticket)) == DIGEST
    assert tickets.issue(DIGEST, "u1") != ticket
    keys.remove(b"old")
    assert tickets.open(query_of(ticket)) is None
    assert UploadTickets().issue(DIGEST, "u1") is None
    assert UploadTickets().open(query_of(ticket)) is None


@pytest.mark.parametrize(
    "spoil",
    [str.lower, lambda ticket: ticket[:-4], lambda ticket: "", lambda ticket: "%" + ticket],
    ids=["in lower case", "cut", "empty", "prefixed"],
)
def test_a_spoilt_ticket_opens_nothing(spoil: Callable[[str], str]) -> None:
    tickets = UploadTickets(lambda: (b"key",))
    ticket = tickets.issue(DIGEST, "u1")
    assert ticket is not None
    assert tickets.open(query_of(spoil(ticket))) is None
    assert tickets.open(query_of(ticket) + b"&kaixu_upload=" + ticket.encode()) is None
    assert tickets.open(b"kaixu_upload=" + ticket.encode()) is None


def begun(base: str = "https://google.example/base") -> BegunUpload:
    return BegunUpload(
        vendor=check_base_url(base, allow_private=False),
        root="https://gateway.example/google",
        digest=DIGEST,
        tickets=UploadTickets(lambda: (b"key",)),
    )


def test_an_address_is_the_gateways_with_path_and_query_as_they_were() -> None:
    own = b"https://Google.example:443/base/upload/v1beta/files?upload_id=u1&key=secret&x=%2F"
    headers = [(b"x-goog-upload-url", own), (b"x-goog-upload-control-url", own), (b"etag", b"e")]
    passed, found = begun().point_back(headers)
    ticket = UploadTickets(lambda: (b"key",)).issue(DIGEST, "u1")
    due = "https://gateway.example/google/upload/v1beta/files?upload_id=u1&x=%2F"
    due += f"&kaixu_upload={ticket}"
    address = due.encode()
    assert passed == [(headers[0][0], address), (headers[1][0], address), (b"etag", b"e")]
    assert [(one.object_id, one.kind) for one in found] == [(object_id_of("u1"), Kind.UPLOAD)]
    assert without_addresses(headers) == [(b"etag", b"e")]


@pytest.mark.parametrize(
    "address",
    [
        b"https://other.example/base/upload/v1beta/files?upload_id=u1",
        b"http://google.example/base/upload/v1beta/files?upload_id=u1",
        b"https://google.example:8443/base/upload/v1beta/files?upload_id=u1",
        b"https://google.example@other.example/base/upload/v1beta/files?upload_id=u1",
        b"https://user@google.example/base/upload/v1beta/files?upload_id=u1",
        b"https://google.example/base/v1beta/models?upload_id=u1",
        b"https://google.example/base/upload/v1beta/files",
        b"https://google.example/base/upload/v1beta/files?upload_id=u1&upload_id=u2",
        b"https://google.example/base/upload/v1beta/files?upload_id=u1#part",
        b"https://google.example:x/base/upload/v1beta/files?upload_id=u1",
        b"/upload/v1beta/files?upload_id=u1",
        b"\xff",
    ],
)
def test_an_address_that_leads_elsewhere_is_no_address(address: bytes) -> None:
    with pytest.raises(VendorBroke):
        begun().point_back([(b"x-goog-upload-url", address)])


def test_two_addresses_are_of_one_upload() -> None:
    first, second = (
        b"https://google.example/base/upload/v1/files?upload_id=" + one for one in (b"a", b"b")
    )
    with pytest.raises(VendorBroke):
        begun().point_back([(b"x-goog-upload-url", first), (b"x-goog-upload-control-url", second)])


# ------------------------------------------------------------------------------------------ calls


class Google:
    """Answers as Google does, with the address that a test sets."""

    def __init__(self, rig: Rig) -> None:
        rig.vendor.script = self.answer
        self.address = f"http://127.0.0.1:{rig.vendor.port}/upload/v1beta/files?upload_id=u1"

    async def answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        text, more = b"", f"x-goog-upload-url: {self.address}\r\n".encode()
        if b"upload_id=" in head.partition(b"\r\n")[0]:
            text = json.dumps({"file": {"name": "files/new"}}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
            % (more, len(text), text)
        )


@pytest.fixture
def google(rig: Rig) -> Google:
    rig.targets = [one for one in rig.targets if one.name == "gemini"] or [rig.target("gemini")]
    return Google(rig)


async def start(rig: Rig, path: str = "/upload/v1beta/files", *headers: str) -> Answer:
    return await rig.ask(path, {"file": {"displayName": "a"}}, headers=(*START, *headers))


async def test_an_upload_goes_on_at_the_gateway_with_the_gateways_key(
    rig: Rig, google: Google
) -> None:
    begun_by = await start(rig)
    address = begun_by.headers["x-goog-upload-url"]
    assert address.startswith("http://gateway/upload/v1beta/files?upload_id=u1&kaixu_upload=")
    assert KEY in rig.vendor.heads[-1]
    last = await rig.ask(address.removeprefix("http://gateway"), b"bytes", headers=LAST)
    assert (last.status, rig.vendor.bodies[-1]) == (200, b"bytes")
    assert "x-goog-upload-url" not in last.headers
    asked, _, head = rig.vendor.heads[-1].partition(b"\r\n")
    assert asked == b"POST /upload/v1beta/files?upload_id=u1 HTTP/1.1"
    assert KEY in head
    assert b"x-goog-upload-command: upload, finalize" in head.lower()
    assert rig.owned.holdings["files/new"].kind == Kind.FILE


async def test_the_address_is_where_the_client_called(rig: Rig, google: Google) -> None:
    answer = await start(rig, "/gemini/upload/v1beta/files", "X-Forwarded-Proto: https")
    address = answer.headers["x-goog-upload-url"]
    assert address.startswith("https://gateway/gemini/upload/v1beta/files?upload_id=u1&")
    assert b"forwarded" not in rig.vendor.heads[-1].lower()


async def test_another_org_does_not_go_on_and_nobody_without_a_ticket(
    rig: Rig, google: Google
) -> None:
    address = (await start(rig)).headers["x-goog-upload-url"].removeprefix("http://gateway")
    bare = "/upload/v1beta/files?upload_id=u1"
    asked = len(rig.vendor.heads)
    unknown = await rig.ask("/upload/v1beta/files?upload_id=u2", b"x", headers=LAST)
    assert (unknown.status, unknown.headers["x-kaixu-reason"]) == NOT_YOURS
    elsewhere = "/v1beta/models/m:generateContent?" + address.partition("?")[2]
    for path in (bare, address.replace("u1", "u2"), address[:-4], elsewhere):
        answer = await rig.ask(path, b"x", headers=LAST, token=None)
        assert (answer.status, answer.headers["x-kaixu-reason"]) == (401, "token_missing"), path
    ours = rig.authenticated.caller
    rig.authenticated.caller = replace(ours, org_id="org-2")
    for path in (bare, address):
        theirs = await rig.ask(path, b"x", headers=LAST)
        assert (theirs.status, theirs.headers["x-kaixu-reason"]) == NOT_YOURS
    assert len(rig.vendor.heads) == asked, "the vendor was asked"
    rig.authenticated.caller = ours
    for method in ("POST", "PUT"):
        answer = await rig.ask(address, b"bytes", headers=LAST, token=None, method=method)
        assert answer.status == 200
    assert b"kaixu" not in rig.vendor.heads[-1]


async def test_an_address_elsewhere_is_the_vendors_fault_and_is_not_told(
    rig: Rig, google: Google
) -> None:
    google.address = "https://evil.example/upload/v1beta/files?upload_id=u1"
    answer = await start(rig)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_unreachable")
    assert b"evil" not in answer.body
    assert "x-goog-upload-url" not in answer.headers
    assert object_id_of("u1") not in rig.owned.holdings
    assert (await rig.lines.row())["status"] == "vendor_broke"


async def test_a_vendors_address_is_never_told_where_none_was_asked_for(
    rig: Rig, google: Google
) -> None:
    raw = "X-Goog-Upload-Protocol: raw"
    answer = await rig.ask("/upload/v1beta/files", b"bytes", headers=[raw])
    assert answer.status == 200
    assert "x-goog-upload-url" not in answer.headers
