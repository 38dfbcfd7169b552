"""Usage of speech and of what was heard: transcriptions, translations, spoken text.

OpenAI counts tokens (`input_tokens`, of which audio in `input_token_details`, whose name is in the
singular here) or time (`seconds`); OpenRouter both. Mistral reports as in its chats, with
`prompt_audio_seconds`, and leaves the audio out of `prompt_tokens`. Where a Whisper tells no usage
but the recording's `duration`, that is the time. In a stream the last event has the usage. What
comes as plain text, as subtitles or as sound tells none.
"""

import re
from typing import Final

import msgspec

from gateway.metering.openai_chat import chat_meters
from gateway.metering.sse import SSE_WHOLE_OUTPUT_BYTES_MAX, SseEvent
from gateway.metering.usage import Flag, Reported, disjoint_input, join_members
from gateway.metering.usage_reader import Meters, UsageReader, is_object, value

_DONE: Final = b"[DONE]"
_DONE_WITHIN_BYTES: Final = 64  # of the end of what came
_ENDS: Final = frozenset({"speech.audio.done", "transcript.text.done", "transcription.done"})
_WANTED: Final = (b".done", b'"error"', b"event: error", b"event:error")
_DETAILS: Final = ("input_token_details", "input_tokens_details")


class _Answer(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw()
    event: msgspec.Raw = msgspec.Raw()  # Mistral's name for a type, with what it tells in `data`
    data: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()
    duration: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)


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

    def meters(self, reported: Reported) -> Meters:
        """Return the counts, disjoint."""
        if reported.at("prompt_tokens") is not None:
            self.service_tier = reported.text("service_tier")
            return chat_meters(reported)
        all_input = reported.count("input_tokens")
        output = reported.count("output_tokens")
        total = reported.count("total_tokens")
        if None not in (all_input, total) and total != (all_input or 0) + (output or 0):
            reported.flags.raise_(Flag.TOTAL_DIFFERS)
        uncached, cache_read, _ = disjoint_input(
            all_input,
            reported.first_count(*((name, "cached_tokens") for name in _DETAILS)),
            None,
            reported.flags,
        )
        seconds = reported.seconds("seconds")
        return {
            "input_tokens": uncached,
            "cache_read_tokens": cache_read,
            "output_tokens": output,
            "audio_input_tokens": reported.of_which(
                reported.first_count(*((name, "audio_tokens") for name in _DETAILS)),
                all_input,
                Flag.AUDIO_EXCEEDS_INPUT,
            ),
            "seconds": self._length(reported) if seconds is None else seconds,
        }

    def _length(self, reported: Reported) -> int | float | None:
        """Return the recording's length where nothing else is told; some write it as a text."""
        length = reported.at("duration")
        if isinstance(length, str):
            try:
                length = float(length)
            except ValueError:
                return None
        return Reported({"duration": length}, reported.flags).seconds("duration")
