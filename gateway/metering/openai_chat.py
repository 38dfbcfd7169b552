"""Usage in OpenAI chat completions, as OpenAI and two dozen compatible vendors report it.

One usage object: `usage` of the answer; in a stream `usage` of the last event that has one, else
`x_groq.usage`, else `choices[].usage`. It is cumulative where it comes more than once.
`prompt_tokens` includes what came from and went to a cache. Whether `completion_tokens` includes
reasoning and `prompt_tokens` includes audio differs by vendor; the total tells. A count under a
name that no vendor documents (`num_cached_tokens`) stays in `vendor_usage` alone: nobody says that
it changes what is owed.
"""

import re
from typing import Final

import msgspec

from gateway.metering.sse import SseEvent
from gateway.metering.usage import Flag, Reported, disjoint_input
from gateway.metering.usage_reader import (
    MODEL_EVENTS_MAX,
    Meters,
    UsageReader,
    is_object,
    value,
)

_DONE: Final = b"[DONE]"
_DONE_WITHIN_BYTES: Final = 64  # of the end of what came


class _Answer(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    x_groq: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    service_tier: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct):
    finish_reason: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


class _Groq(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_CHOICES: Final = msgspec.json.Decoder(list[_Choice] | None)
_GROQ: Final = msgspec.json.Decoder(_Groq | None)


class OpenAIChat(UsageReader):
    """Reads one chat completion."""

    usage_member = b"usage"
    finish_pattern = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,64})"')

    def __init__(self) -> None:
        super().__init__()
        self._usage = b""
        self._look_for_model = MODEL_EVENTS_MAX

    def wants(self, raw: bytes) -> bool:
        """Return whether something is told other than a delta: a count, a finish, an error."""
        if self._look_for_model or self.finish_reason:
            return True
        named = raw.count(b'"usage"')
        if named and named != raw.count(b'"usage":null'):
            return True
        named = raw.count(b'"finish_reason"')
        if named and named != raw.count(b'"finish_reason":null'):
            return True
        return raw.find(_DONE, -_DONE_WITHIN_BYTES) >= 0 or raw.find(b'"error"') >= 0

    def read_event(self, event: SseEvent) -> None:
        """Take in one event of a stream."""
        if event.data.strip() == _DONE:
            self.saw_end = True
            self.final = True
            self.is_over = True
            return
        if event.name == b"error":
            self.tell_error()
        if self._look_for_model:
            self._look_for_model -= 1
        self.read_object(event.data)

    def read_object(self, document: bytes) -> None:
        """Take in a chat completion, or one chunk of it."""
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        if not self.model and (model := self.text(answer.model)):
            self.model = model
            self._look_for_model = 0
        self.service_tier = self.text(answer.service_tier) or self.service_tier
        if value(answer.error):
            self.tell_error()
        usage = self._read_choices(answer.choices)
        if is_object(answer.x_groq) and (groq := self.decode(_GROQ, bytes(answer.x_groq))):
            usage = groq.usage if is_object(groq.usage) else usage
        if is_object(answer.usage):
            usage = answer.usage
        if is_object(usage):
            self._usage = bytes(usage)
            self.final = self.saw_end

    def _read_choices(self, raw: msgspec.Raw) -> msgspec.Raw:
        """Take in the finish reasons, return the last usage that stands in a choice."""
        usage = msgspec.Raw()
        document = bytes(raw)
        if document in (b"", b"[]"):
            return usage
        for choice in self.decode(_CHOICES, document) or ():
            reason = self.text(choice.finish_reason)
            if reason is not None:
                self.finish_reason = reason
                self.saw_end = self.saw_end or reason != ""
            if is_object(choice.usage):
                usage = choice.usage
        return usage

    def raw_usage(self) -> bytes:
        """Return the last usage object."""
        return self._usage

    def meters(self, reported: Reported) -> Meters:
        """Return the counts, disjoint."""
        self.service_tier = self.service_tier or reported.text("service_tier")
        return chat_meters(reported)


def chat_meters(reported: Reported) -> Meters:
    """Return the counts of a chat's usage object, disjoint."""
    reasoning = reported.first_count(
        ("completion_tokens_details", "reasoning_tokens"), ("reasoning_tokens",)
    )
    audio = reported.count("prompt_tokens_details", "audio_tokens")
    all_input, output = _whole_counts(reported, reasoning=reasoning, audio=audio)
    uncached, cache_read, cache_write = disjoint_input(
        all_input,
        reported.first_count(
            ("prompt_tokens_details", "cached_tokens"),
            ("cached_tokens",),
            ("prompt_cache_hit_tokens",),
        ),
        reported.count("prompt_tokens_details", "cache_write_tokens"),
        reported.flags,
    )
    return {
        "input_tokens": uncached,
        "cache_read_tokens": cache_read,
        "cache_write_tokens": cache_write,
        "output_tokens": output,
        "reasoning_tokens": reported.of_which(reasoning, output, Flag.REASONING_EXCEEDS_OUTPUT),
        "audio_input_tokens": reported.of_which(audio, all_input, Flag.AUDIO_EXCEEDS_INPUT),
        "audio_output_tokens": reported.of_which(
            reported.count("completion_tokens_details", "audio_tokens"),
            output,
            Flag.AUDIO_EXCEEDS_OUTPUT,
        ),
        "image_input_tokens": reported.of_which(
            reported.count("prompt_tokens_details", "image_tokens"),
            all_input,
            Flag.IMAGE_EXCEEDS_INPUT,
        ),
        "seconds": reported.seconds("prompt_audio_seconds"),
        "searches": reported.first_count(
            ("num_search_queries",), ("server_tool_use_details", "web_search_requests")
        ),
    }


def _whole_counts(
    reported: Reported, *, reasoning: int | None, audio: int | None
) -> tuple[int | None, int | None]:
    """Return all input and all output, with what the vendor counts beside them.

    The total tells: what it has more than prompt and completion is the reasoning (xAI) or the
    audio (Mistral) that the vendor leaves out of them. Any other rest stays out, flagged: nothing
    says what it is.
    """
    prompt = reported.count("prompt_tokens")
    completion = reported.count("completion_tokens")
    total = reported.count("total_tokens")
    if prompt is None or completion is None or total is None:
        return prompt, completion
    rest = total - prompt - completion
    if rest == 0:
        return prompt, completion
    if rest == reasoning:
        return prompt, completion + rest
    if rest == audio:
        return prompt + rest, completion
    if reasoning and audio and rest == reasoning + audio:
        return prompt + audio, completion + reasoning
    reported.flags.raise_(Flag.TOTAL_DIFFERS)
    return prompt, completion
