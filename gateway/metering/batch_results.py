"""Usage in the results of a batch: one line of JSON for each request of it, summed.

    {"custom_id": …, "response": {"status_code": 200, "body": {an answer}}, "error": null}   OpenAI
    {"custom_id": …, "result": {"type": "succeeded", "message": {an answer}}}             Anthropic

An answer is read as it would be by itself. The raw usage of a row is what the sum was made of, by
model: a batch may have several, and then its row names none.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from gateway.metering.anthropic_messages import AnthropicMessages
from gateway.metering.json_lines import LineParser
from gateway.metering.openai_chat import OpenAIChat
from gateway.metering.openai_embeddings import OpenAIEmbeddings
from gateway.metering.openai_responses import OpenAIResponses
from gateway.metering.usage import METERS, Flag, Flags, Usage, storable_usage
from gateway.metering.usage_reader import UsageReader

LINE_BYTES_MAX: Final = 16 * 1024 * 1024  # an answer with an image in it
MODELS_MAX: Final = 64  # told apart in one batch; those beyond are summed as one
OTHER_MODELS: Final = "others"

_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_Sums = dict[str, int | float]


class _Answer(msgspec.Struct):
    object: msgspec.Raw = msgspec.Raw()


class _Response(msgspec.Struct):
    body: msgspec.Raw = msgspec.Raw()


class _Result(msgspec.Struct):
    message: msgspec.Raw = msgspec.Raw()


class _Line(msgspec.Struct):
    response: _Response | None = None
    result: _Result | None = None


_LINE: Final = msgspec.json.Decoder(_Line)
_ANSWER: Final = msgspec.json.Decoder(_Answer)
_OPENAI: Final[Mapping[bytes, Callable[[], UsageReader]]] = MappingProxyType(
    {b'"response"': OpenAIResponses, b'"list"': OpenAIEmbeddings}
)


class BatchResults:
    """Meters the results of one batch, as they come. A meter: see `Meter`."""

    is_over = False  # only the framing tells
    saw_end = True
    stream_error = False

    def __init__(self) -> None:
        self._parser = LineParser(lambda _: True, event_bytes_max=LINE_BYTES_MAX)
        self._flags = Flags()
        self._sums: _Sums = {}
        self._by_model: dict[str, _Sums] = {}
        self._failed = False

    def feed(self, chunk: bytes) -> None:
        """Take in bytes of the results. Never raises."""
        if self._failed:
            return
        try:
            for line in self._parser.feed(chunk):
                self._read(line.data)
        except Exception:  # noqa: BLE001 - a defect of a meter must not cost anyone the answer
            self._failed = True

    def usage_so_far(self) -> Usage:
        """Return nothing: only the framing tells where the results end."""
        return Usage()

    def finish(self, *, complete: bool) -> Usage:
        """Return the sum."""
        try:
            for line in self._parser.finish():
                self._read(line.data)
            return self._usage(complete=complete)
        except Exception:  # noqa: BLE001 - as in feed
            return Usage(flags=(Flag.METER_FAILED.value,))

    def _read(self, document: bytes) -> None:
        try:
            line = _LINE.decode(document)
        except _UNREADABLE:
            self._flags.raise_(Flag.UNREADABLE)
            return
        for answer, reader in _answers(line):
            reader.read_object(answer)
            usage = reader.usage(complete=True)
            for flag in usage.flags:
                self._flags.raise_(Flag(flag))
            if usage.source != "none":
                self._add(usage)

    def _add(self, usage: Usage) -> None:
        model = usage.model_served or ""
        if model not in self._by_model and len(self._by_model) >= MODELS_MAX:
            model = OTHER_MODELS
        sums = self._by_model.setdefault(model, {})
        sums["requests"] = sums.get("requests", 0) + 1
        for name in METERS:
            count: int | float | None = getattr(usage, name)
            if count is not None:
                sums[name] = sums.get(name, 0) + count
                self._sums[name] = self._sums.get(name, 0) + count

    def _usage(self, *, complete: bool) -> Usage:
        if self._parser.skipped:
            self._flags.raise_(Flag.EVENT_TOO_LARGE)
        if self._failed:
            self._flags.raise_(Flag.METER_FAILED)
        raw = msgspec.json.encode({"by_model": self._by_model})
        models = list(self._by_model)
        return Usage(
            **self._sums,  # type: ignore[arg-type]
            model_served=models[0] or None if len(models) == 1 else None,
            vendor_usage=storable_usage(raw, self._flags, shorten=_shorten) if models else None,
            flags=self._flags.names(),
            source="none" if not self._sums else "vendor" if complete else "partial",
        )


def _shorten(raw: bytes) -> bytes:
    return raw  # storable_usage leaves the largest members out


def _answers(line: _Line) -> Iterator[tuple[bytes, UsageReader]]:
    if line.response is not None and bytes(line.response.body).startswith(b"{"):
        body = bytes(line.response.body)
        kind = bytes(_ANSWER.decode(body).object)
        yield body, _OPENAI.get(kind, OpenAIChat)()
    if line.result is not None and bytes(line.result.message).startswith(b"{"):
        yield bytes(line.result.message), AnthropicMessages()
