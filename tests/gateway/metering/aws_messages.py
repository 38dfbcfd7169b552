"""AWS event stream messages, written independently of how the product reads and writes them."""

import base64
import json
import struct
import zlib
from typing import Any


def message(payload: bytes, **headers: str) -> bytes:
    """One message; `event_type="x"` is the header `:event-type`."""
    raw = b""
    for name, value in headers.items():
        text, data = (":" + name.replace("_", "-")).encode(), value.encode()
        raw += struct.pack(">B", len(text)) + text + struct.pack(">BH", 7, len(data)) + data
    prelude = struct.pack(">II", 16 + len(raw) + len(payload), len(raw))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + raw + payload
    return whole + struct.pack(">I", zlib.crc32(whole))


def event(name: str, data: Any) -> bytes:
    payload = json.dumps(data).encode()
    kind = {"event_type": name, "content_type": "application/json", "message_type": "event"}
    return message(payload, **kind)


def chunk(data: Any) -> bytes:
    """A message of InvokeModel: the family's own JSON in base64."""
    return event(
        "chunk", {"bytes": base64.b64encode(json.dumps(data).encode()).decode(), "p": "ab"}
    )


def exception(name: str, text: str = "no") -> bytes:
    return message(
        json.dumps({"message": text}).encode(), exception_type=name, message_type="exception"
    )
