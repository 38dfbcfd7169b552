"""Meters: the bytes of an answer go in, a `Usage` comes out.

A meter reads a copy of what the vendor sends, as it comes. It never raises and never keeps more
than its bounds: what it can't read, it doesn't count, and says so in a flag. `open_meter` picks
the meter by what really came, not by what was asked for: a `stream: true` may be answered in one
piece.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Protocol

import msgspec

from gateway.metering.anthropic_messages import AnthropicMessages
from gateway.metering.aws_event_stream import MEDIA_TYPE as AWS_MEDIA_TYPE
from gateway.metering.aws_event_stream import AwsEventParser
from gateway.metering.batch_results import BatchResults
from gateway.metering.bedrock_converse import BedrockConverse
from gateway.metering.bedrock_invoke import BedrockInvoke
from gateway.metering.cohere import Cohere, CohereChat
from gateway.metering.decoding import DECODERS, DecodedTooLarge, Decoder, DecodingStopped
from gateway.metering.gemini_generate import GeminiGenerate
from gateway.metering.gemini_interactions import GeminiInteractions
from gateway.metering.json_lines import MEDIA_TYPES, LineParser
from gateway.metering.json_parts import object_in_tail, objects_in_head
from gateway.metering.mistral_ocr import MistralOcr
from gateway.metering.ollama import Ollama
from gateway.metering.openai_audio import OpenAIAudio
from gateway.metering.openai_chat import OpenAIChat
from gateway.metering.openai_embeddings import OpenAIEmbeddings
from gateway.metering.openai_responses import OpenAIResponses
from gateway.metering.sse import SseEvent, SseParser
from gateway.metering.usage import Flag, Usage
from gateway.metering.usage_reader import UsageReader
from gateway.metering.vertex_predict import VertexPredict

HEAD_BYTES_MAX: Final = 64 * 1024  # of an answer in one piece: the model's name is here
TAIL_BYTES_MAX: Final = 256 * 1024  # and the usage here

_STATUS_ERROR_MIN: Final = 400
_CACHED_TYPES_MAX: Final = 64  # content types; vendors have a handful
_EDGE_BYTES: Final = 64  # an answer's first and last bracket have at most some space around them


class MeterFormat(StrEnum):
    """Whose usage an endpoint reports, and how."""

    OPENAI_CHAT = "openai.chat"  # completions too
    OPENAI_RESPONSES = "openai.responses"
    OPENAI_EMBEDDINGS = "openai.embeddings"  # rerank and images too
    OPENAI_AUDIO = "openai.audio"  # Mistral's too
    MISTRAL_OCR = "mistral.ocr"
    OPENAI_BATCH = "openai.batch"  # the batch itself tells as a response does
    OPENAI_BATCH_OUTPUT = "openai.batch_output"
    ANTHROPIC_MESSAGES = "anthropic.messages"
    ANTHROPIC_BATCH_RESULTS = "anthropic.batch_results"
    GEMINI_GENERATE = "gemini.generate"
    GEMINI_INTERACTIONS = "gemini.interactions"
    COHERE_CHAT = "cohere.chat"
    COHERE_META = "cohere.meta"  # chat of version 1, embeddings, rerank
    OLLAMA = "ollama"
    BEDROCK_CONVERSE = "bedrock.converse"
    BEDROCK_INVOKE = "bedrock.invoke"
    VERTEX_PREDICT = "vertex.predict"
    NONE = "none"  # generates nothing: model lists, token counting


READERS: Final[Mapping[str, Callable[[], UsageReader]]] = MappingProxyType(
    {
        MeterFormat.OPENAI_CHAT: OpenAIChat,
        MeterFormat.OPENAI_RESPONSES: OpenAIResponses,
        MeterFormat.OPENAI_EMBEDDINGS: OpenAIEmbeddings,
        MeterFormat.OPENAI_AUDIO: OpenAIAudio,
        MeterFormat.MISTRAL_OCR: MistralOcr,
        MeterFormat.OPENAI_BATCH: OpenAIResponses,
        MeterFormat.ANTHROPIC_MESSAGES: AnthropicMessages,
        MeterFormat.GEMINI_GENERATE: GeminiGenerate,
        MeterFormat.GEMINI_INTERACTIONS: GeminiInteractions,
        MeterFormat.COHERE_CHAT: CohereChat,
        MeterFormat.COHERE_META: Cohere,
        MeterFormat.OLLAMA: Ollama,
        MeterFormat.BEDROCK_CONVERSE: BedrockConverse,
        MeterFormat.BEDROCK_INVOKE: BedrockInvoke,
        MeterFormat.VERTEX_PREDICT: VertexPredict,
    }
)
_RESULTS: Final = frozenset({MeterFormat.OPENAI_BATCH_OUTPUT, MeterFormat.ANTHROPIC_BATCH_RESULTS})
_PLAIN: Final = frozenset({b"", b"identity"})  # content encodings that are none


class Meter(Protocol):
    """Reads one answer.

    `saw_end`: the format's own end was seen, or this meter can't tell; False at the end of a
    stream means that the vendor broke it off. `stream_error`: the vendor told of an error inside
    an answer that began well. `is_over`: the mark was seen with which the format ends a stream
    (`[DONE]`, `message_stop`) and nothing after it: a client has the whole answer then, whatever
    becomes of the connection. `usage_so_far` is what the usage would be.
    """

    @property
    def is_over(self) -> bool:
        """Whether the mark that ends a stream was seen."""
        ...

    @property
    def saw_end(self) -> bool:
        """Whether the format's own end was seen, or can't be told."""
        ...

    @property
    def stream_error(self) -> bool:
        """Whether the vendor told of an error inside the answer."""
        ...

    def feed(self, chunk: bytes) -> None:
        """Take in bytes of the body, in order, cut anywhere. Never raises."""
        ...

    def usage_so_far(self) -> Usage:
        """Return the usage as it is once `is_over`; more may come. Never raises."""
        ...

    def finish(self, *, complete: bool) -> Usage:
        """Return the usage, once; `complete` is False where the answer was cut. Never raises."""
        ...


class NullMeter:
    """Meters nothing: answers that report no usage, and errors."""

    is_over = False
    saw_end = True
    stream_error = False

    def __init__(self, *flags: Flag) -> None:
        """Take `flags` that say why nothing is metered, where that is not as it should be."""
        self._flags = tuple(flag.value for flag in flags) if flags else ()

    def feed(self, chunk: bytes) -> None:
        """Do nothing."""

    def usage_so_far(self) -> Usage:
        """Return that nothing was said."""
        return Usage(flags=self._flags)

    def finish(self, *, complete: bool) -> Usage:  # noqa: ARG002 - as Meter
        """Return that nothing was said."""
        return Usage(flags=self._flags)


class StreamMeter:
    """Meters a stream of server-sent events, of lines, or of AWS's messages."""

    __slots__ = ("_failed", "_parser", "_reader", "is_over")

    def __init__(
        self,
        reader: UsageReader,
        *,
        parser: type[SseParser | LineParser | AwsEventParser] = SseParser,
    ) -> None:
        """`reader` knows the events, `parser` the framing."""
        self._reader = reader
        self._parser = parser(reader.wants, event_bytes_max=reader.event_bytes_max)
        self._failed = False
        self.is_over = False

    @property
    def saw_end(self) -> bool:
        """Whether the format's own end was seen; or may have been, in what was skipped."""
        return self._reader.saw_end or self._failed or self._parser.skipped > 0

    @property
    def stream_error(self) -> bool:
        """Whether the vendor told of an error inside the stream."""
        return self._reader.stream_error

    @property
    def wants(self) -> Callable[[bytes], bool] | None:
        """What tells whether whole events have to be fed; None: whatever comes next has to be."""
        is_between = isinstance(self._parser, SseParser) and self._parser.is_between
        return self._reader.wants if is_between and not self._failed else None

    def feed(self, chunk: bytes) -> None:
        """Take in bytes of the stream."""
        if self._failed:
            return
        try:
            if events := self._parser.feed(chunk):
                for event in events:
                    self._reader.read_event(event)
                self.is_over = self._reader.is_over
        except Exception:  # noqa: BLE001 - a defect of a meter must not cost anyone the answer
            self._failed = True

    def usage_so_far(self) -> Usage:
        """Return the usage of what came."""
        try:
            return self._reader.usage(complete=True)
        except Exception:  # noqa: BLE001 - as in feed
            return Usage(flags=(Flag.METER_FAILED.value,))

    def finish(self, *, complete: bool) -> Usage:
        """Return the usage of the stream."""
        try:
            for event in self._parser.finish():
                if _is_whole(event):
                    self._reader.read_event(event)
            if self._parser.skipped:
                self._reader.flags.raise_(Flag.EVENT_TOO_LARGE)
            if self._failed:
                self._reader.flags.raise_(Flag.METER_FAILED)
            return self._reader.usage(complete=complete)
        except Exception:  # noqa: BLE001 - as in feed
            return Usage(flags=(Flag.METER_FAILED.value,))


class WholeMeter:
    """Meters an answer in one piece, of any size: keeps its head and its tail."""

    __slots__ = ("_head", "_left_out", "_reader", "_tail")

    is_over = False  # only the framing tells

    def __init__(self, reader: UsageReader) -> None:
        """`reader` knows the answer."""
        self._reader = reader
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = False  # bytes between head and tail

    @property
    def saw_end(self) -> bool:
        """Whether the JSON is closed, as far as its first and last bytes tell."""
        end = bytes((self._tail or self._head)[-_EDGE_BYTES:]).rstrip()
        start = bytes(self._head[:_EDGE_BYTES]).lstrip()
        return end.endswith(b"]" if start.startswith(b"[") else b"}")

    @property
    def stream_error(self) -> bool:
        """Whether the answer is an error; known once it is finished."""
        return self._reader.stream_error

    def feed(self, chunk: bytes) -> None:
        """Take in bytes of the answer."""
        room = HEAD_BYTES_MAX - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        if chunk:
            self._tail += chunk[-TAIL_BYTES_MAX:]
            excess = len(self._tail) - TAIL_BYTES_MAX
            if excess > 0 or len(chunk) > TAIL_BYTES_MAX:
                self._left_out = True
                del self._tail[: max(0, excess)]

    def usage_so_far(self) -> Usage:
        """Return nothing: only the framing tells where this answer ends."""
        return Usage()

    def finish(self, *, complete: bool) -> Usage:
        """Return the usage of the answer."""
        try:
            self._read(complete=complete)
            return self._reader.usage(complete=complete)
        except Exception:  # noqa: BLE001 - as in StreamMeter.feed
            return Usage(flags=(Flag.METER_FAILED.value,))

    def _read(self, *, complete: bool) -> None:
        kept = bytes(self._head + self._tail if self._tail else self._head)
        if not self._left_out and complete and self._reads_whole(kept):
            return
        for document in objects_in_head(bytes(self._head) if self._left_out else kept):
            self._reader.read_object(document)
        if not self._left_out:
            return
        tail = bytes(self._tail)
        for name in self._reader.tail_members:
            if (members := object_in_tail(tail, name)) is not None:
                self._reader.read_object(members)
        members = object_in_tail(tail, self._reader.usage_member)
        if members is not None:
            self._reader.read_object(members)
            self._find_finish(tail)

    def _reads_whole(self, kept: bytes) -> bool:
        """Read an answer that was kept whole; return False where it is not JSON."""
        try:
            start = kept[:1] if kept[:1] in _JSON_STARTS else kept.lstrip()[:1]
            if start == b"[":
                documents = [bytes(raw) for raw in _OBJECTS.decode(kept)]
            else:
                documents = [kept] if start else []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        for document in documents:
            self._reader.read_object(document)
        return True

    def _find_finish(self, tail: bytes) -> None:
        if self._reader.finish_reason is None:
            found = self._reader.finish_pattern.findall(tail)
            if found:
                self._reader.finish_reason = found[-1].decode()


class DecodingMeter:
    """Opens a content encoding for the meter behind it. Stops for good at what it can't open."""

    def __init__(self, meter: Meter, decoder: Decoder) -> None:
        """`meter` gets the decoded copy."""
        self._meter = meter
        self._decoder = decoder
        self._stopped_by: Flag | None = None

    @property
    def is_over(self) -> bool:
        """Whether the mark that ends a stream was seen."""
        return self._meter.is_over

    @property
    def saw_end(self) -> bool:
        """Whether the format's own end was seen, or can't be told."""
        return self._meter.saw_end or self._stopped_by is not None

    @property
    def stream_error(self) -> bool:
        """Whether the vendor told of an error inside the answer."""
        return self._meter.stream_error

    def feed(self, chunk: bytes) -> None:
        """Take in bytes as they came."""
        if self._stopped_by is not None:
            return
        try:
            decoded = self._decoder.feed(chunk)
        except DecodedTooLarge:
            self._stopped_by = Flag.DECODED_TOO_LARGE
        except DecodingStopped:
            self._stopped_by = Flag.UNDECODABLE
        except Exception:  # noqa: BLE001 - as in StreamMeter.feed
            self._stopped_by = Flag.METER_FAILED
        else:
            if decoded:
                self._meter.feed(decoded)

    def usage_so_far(self) -> Usage:
        """Return the usage of what was opened."""
        return self._meter.usage_so_far()

    def finish(self, *, complete: bool) -> Usage:
        """Return the usage of what could be opened."""
        usage = self._meter.finish(complete=complete and self._stopped_by is None)
        if self._stopped_by is None:
            return usage
        return msgspec.structs.replace(usage, flags=(*usage.flags, self._stopped_by.value))


_OBJECTS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_JSON_STARTS: Final = (b"{", b"[")  # of nearly every answer; in others there is space before it


def _is_whole(event: SseEvent) -> bool:
    """Return whether an event that the stream's end completed was not cut itself."""
    try:
        msgspec.json.decode(event.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return event.data.strip() == b"[DONE]"
    return True


def open_meter(
    endpoint_meter: str,
    *,
    stream: bool,
    status: int,
    content_type: bytes,
    content_encoding: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Meter:
    """Return the meter for an answer, from the endpoint's `MeterFormat` and the answer's head.

    `stream` is what the client asked for; it decides only where the content type tells neither
    events nor JSON. Of `headers`, names in lower case, some tell usage. An error reports no usage.
    Raises KeyError for an unknown `endpoint_meter`.
    """
    if status >= _STATUS_ERROR_MIN or endpoint_meter == MeterFormat.NONE:
        return NullMeter()
    meter: Meter
    if endpoint_meter in _RESULTS:
        meter = BatchResults()
    else:
        media_type = _media_type(content_type)
        reader = READERS[endpoint_meter]()
        if not reader.answers_in_json_only and _is_otherwise(media_type):
            return NullMeter()
        reader.read_headers(headers)
        meter = _meter_of(reader, stream=stream, media_type=media_type)
    if not content_encoding:
        return meter
    encoding = content_encoding.strip().lower()
    if encoding in _PLAIN:
        return meter
    decoder = DECODERS.get(encoding)
    return DecodingMeter(meter, decoder()) if decoder else NullMeter(Flag.UNDECODABLE)


def _meter_of(reader: UsageReader, *, stream: bool, media_type: bytes) -> Meter:
    """Return what reads an answer of this type, its encoding removed."""
    if media_type == b"application/json":
        return WholeMeter(reader)
    if media_type == b"text/event-stream":
        return StreamMeter(reader)
    if media_type in MEDIA_TYPES:
        return StreamMeter(reader, parser=LineParser)
    if media_type == AWS_MEDIA_TYPE:
        return StreamMeter(reader, parser=AwsEventParser)
    if media_type.endswith(b"+json"):
        return WholeMeter(reader)
    return StreamMeter(reader) if stream else WholeMeter(reader)


def is_in_lines(content_type: bytes) -> bool:
    """Return whether an answer is a stream of lines of JSON."""
    return _media_type(content_type) in MEDIA_TYPES


@lru_cache(maxsize=_CACHED_TYPES_MAX)
def _media_type(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


def _is_otherwise(media_type: bytes) -> bool:
    """Return whether an answer is said to be neither JSON nor events: sound, subtitles, text."""
    return bool(media_type) and not media_type.endswith((b"json", b"event-stream"))
