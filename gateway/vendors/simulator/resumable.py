"""Google's uploads in several requests, as the simulated vendor takes them.

The first request is answered with an address of the vendor's own; what comes there is put together
until it is final. Chunks have to follow each other without a gap.
"""

from typing import Final

import orjson

from gateway.vendors.simulator.connection import Request
from gateway.vendors.simulator.formats import AskInvalid
from gateway.vendors.simulator.shelf import Document, Reply, Shelf, new_gemini_file, reply

GRANULARITY: Final = 262_144  # as the real one asks of all chunks but the last

_STATUS: Final = "x-goog-upload-status"
_RECEIVED: Final = "x-goog-upload-size-received"


def is_resumable(request: Request) -> bool:
    """Return whether a request begins such an upload, or goes on with one."""
    return "x-goog-upload-command" in request.headers


def answer_resumable(shelf: Shelf, request: Request) -> Reply:
    """Do what a request asks of an upload. Raises AskInvalid, Missing."""
    commands = {one.strip() for one in request.headers["x-goog-upload-command"].split(",")}
    if commands == {"start"}:
        return _start(shelf, request)
    upload_id = request.query.get("upload_id", "")
    upload = shelf.get("uploads", upload_id)
    status: str = upload["status"]
    if commands == {"query"}:
        return _told(status, received=len(shelf.content(upload_id)))
    if status != "active":
        raise AskInvalid(f"Upload has already been {status}.")
    if commands == {"cancel"}:
        upload["status"] = "cancelled"
        return _told("cancelled")
    if not commands <= {"upload", "finalize"}:
        raise AskInvalid("Unknown command.")
    content = shelf.content(upload_id)
    if "upload" in commands:
        if request.headers.get("x-goog-upload-offset") != str(len(content)):
            raise AskInvalid(f"The offset has to be {len(content)}.")
        content += request.body
        shelf.put_content(upload_id, content)
    if "finalize" not in commands:
        return _told("active", received=len(content))
    upload["status"] = "final"
    shelf.put_content(upload_id, b"")
    made = new_gemini_file(shelf, upload["file"], size=len(content))
    return reply({"file": made})._replace(headers=((_STATUS, "final"),))


def _start(shelf: Shelf, request: Request) -> Reply:
    if request.headers.get("x-goog-upload-protocol") != "resumable":
        raise AskInvalid("Unknown protocol.")
    try:
        metadata: Document = orjson.loads(request.body or b"{}").get("file", {})
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise AskInvalid("The metadata is not JSON.") from error
    told = request.headers.get("x-goog-upload-header-content-type")
    if told:
        metadata = {"mimeType": told, **metadata}
    upload_id = shelf.new_id("ABPtcP")
    shelf.put("uploads", upload_id, {"status": "active", "file": metadata})
    shelf.put_content(upload_id, b"")
    host = request.headers.get("host", "")
    url = f"http://{host}{request.path}?upload_id={upload_id}&upload_protocol=resumable"
    more = (
        ("x-goog-upload-url", url),
        ("x-goog-upload-control-url", url),
        ("x-goog-upload-chunk-granularity", str(GRANULARITY)),
    )
    answer = _told("active")
    return answer._replace(headers=(*answer.headers, *more))


def _told(status: str, *, received: int | None = None) -> Reply:
    size = () if received is None else ((_RECEIVED, str(received)),)
    return Reply(200, b"", "text/plain", ((_STATUS, status), *size))
