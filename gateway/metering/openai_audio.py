"""Usage of speech and of what was heard: transcriptions, translations, spoken text.

OpenAI counts tokens (`input_tokens`, of which audio in `input_token_details`, whose name is in the
singular here) or time (`seconds`); OpenRouter both. Mistral reports as in its chats, with
`prompt_audio_seconds`, and leaves the audio out of `prompt_tokens`. Where a Whisper tells no usage
but the recording's `duration`, that is the time. In a stream the last event has the usage. What
comes as plain text, as subtitles or as sound tells none.
"""

import re
from typing import Any, Final

import msgspec

from gateway.metering.lenient import Count, Lenient, Seconds
from gateway.metering.openai_chat import ChatUsage, chat_meters
from gateway.metering.sse import SSE_WHOLE_OUTPUT_BYTES_MAX, SseEvent
from gateway.metering.usage import (
    Flag,
    clean_text,
    disjoint_input,
    first_of,
    join_members,
    of_which,
)
from gateway.metering.usage_reader import Meters, UsageReader, is_object, value

_DONE: Final = b"[DONE]"
_DONE_WITHIN_BYTES: Final = 64  # of the end of what came
_ENDS: Final = frozenset({"speech.audio.done", "transcript.text.done", "transcription.done"})
_WANTED: Final = (b".done", b'"error"', b"event: error", b"event:error")


class _Answer(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw()
    event: msgspec.Raw = msgspec.Raw()  # Mistral's name for a type, with what it tells in `data`
    data: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()
    duration: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Details(msgspec.Struct):
    cached_tokens: Count = None
    audio_tokens: Count = None


class _Usage(ChatUsage):
    input_tokens: Count = None
    output_tokens: Count = None
    input_token_details: _Details | None = None
    input_tokens_details: _Details | None = None
    seconds: Seconds = None
    duration: Any = None


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_USAGE: Final = Lenient(_Usage)
_NO_DETAILS: Final = _Details()


class OpenAIAudio(UsageReader):
    """Reads one answer."""

    usage_member = b"usage"
    event_bytes_max = SSE_WHOLE_OUTPUT_BYTES_MAX  # the last one has all of the text, and its odds
    finish_pattern = re.compile(rb"(?!)")  # none of them says why it ended
    answers_in_json_only = False

    def __init__(self) -> None:
        super().__init__()
        self._usage = b""
        self._duration = b""

    def wants(self, raw: bytes) -> bool:
        """Return whether the stream may end here, or an error is told."""
        if raw.find(_DONE, -_DONE_WITHIN_BYTES) >= 0:
            return True
        return any(raw.find(name) >= 0 for name in _WANTED)

    def read_event(self, event: SseEvent) -> None:
        """Take in one event of a stream."""
        if event.data.strip() == _DONE:
            self._end()
            return
        if event.name == b"error":
            self.tell_error()
        self.read_object(event.data)
        if event.name.decode("ascii", "replace") in _ENDS:
            self._end()

    def read_object(self, document: bytes) -> None:
        """Take in an answer, a part of one, or an event."""
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        kind = value(answer.type) or value(answer.event)
        if is_object(answer.data):
            inner = self.decode(_ANSWER, bytes(answer.data))
            answer = answer if inner is None else inner
        self.model = self.text(answer.model) or self.model
        if value(answer.error):
            self.tell_error()
        if is_object(answer.usage):
            self._usage = bytes(answer.usage)
        if bytes(answer.duration) not in (b"", b"null"):
            self._duration = bytes(answer.duration)
        if isinstance(kind, str) and kind in _ENDS:
            self._end()

    def _end(self) -> None:
        self.saw_end = self.is_over = self.final = True

    def raw_usage(self) -> bytes:
        """Return the usage object, else the recording's length as one."""
        if not self._usage and self._duration:
            return join_members({"duration": self._duration})
        return self._usage

    def counts(self, raw: bytes) -> Meters:
        """Return the counts, disjoint."""
        told = _USAGE.read(raw, self.flags)
        if told is None:
            return {}
        if told.prompt_tokens is not None:
            self.service_tier = clean_text(told.service_tier, self.flags)
            return chat_meters(told, self.flags)
        all_input, output, total = told.input_tokens, told.output_tokens, told.total_tokens
        if None not in (all_input, total) and total != (all_input or 0) + (output or 0):
            self.flags.raise_(Flag.TOTAL_DIFFERS)
        details = told.input_token_details or _NO_DETAILS
        others = told.input_tokens_details or _NO_DETAILS
        uncached, cache_read, _ = disjoint_input(
            all_input, first_of(details.cached_tokens, others.cached_tokens), None, self.flags
        )
        return {
            "input_tokens": uncached,
            "cache_read_tokens": cache_read,
            "output_tokens": output,
            "audio_input_tokens": of_which(
                first_of(details.audio_tokens, others.audio_tokens),
                all_input,
                Flag.AUDIO_EXCEEDS_INPUT,
                self.flags,
            ),
            "seconds": self._length(told.duration) if told.seconds is None else told.seconds,
        }

    def _length(self, told: object) -> int | float | None:
        """Return the recording's length where nothing else is told; some write it as a text."""
        try:
            length: int | float | None = msgspec.convert(told, Seconds, strict=False)
        except msgspec.ValidationError:
            self.flags.raise_(Flag.BAD_NUMBER)
            return None
        return length
