"""Usage in OpenAI chat completions, as OpenAI and two dozen compatible vendors report it.

One usage object: `usage` of the answer; in a stream `usage` of the last event that has one, else
`x_groq.usage`, else `choices[].usage`. It is cumulative where it comes more than once.
`prompt_tokens` includes what came from and went to a cache. Whether `completion_tokens` includes
reasoning and `prompt_tokens` includes audio differs by vendor; the total tells. A count under a
name that no vendor documents (`num_cached_tokens`) stays in `vendor_usage` alone: nobody says that
it changes what is owed.
"""

import re
from typing import Any, Final

import msgspec

from gateway.metering.lenient import Count, Lenient, Seconds
from gateway.metering.sse import SseEvent
from gateway.metering.usage import Flag, Flags, clean_text, disjoint_input, of_which
from gateway.metering.usage_reader import MODEL_EVENTS_MAX, Meters, UsageReader, is_object

_DONE: Final = b"[DONE]"
_DONE_WITHIN_BYTES: Final = 64  # of the end of what came
_ABSENT: Final = msgspec.Raw()


class _Choice(msgspec.Struct):
    finish_reason: Any = None
    usage: msgspec.Raw = _ABSENT


class _Groq(msgspec.Struct):
    usage: msgspec.Raw = _ABSENT


class _Answer(msgspec.Struct):
    model: Any = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _ABSENT
    x_groq: _Groq | None = None
    error: Any = None
    service_tier: Any = None


class _InputDetails(msgspec.Struct):
    cached_tokens: Count = None
    cache_write_tokens: Count = None
    audio_tokens: Count = None
    image_tokens: Count = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Count = None
    audio_tokens: Count = None


class _ToolDetails(msgspec.Struct):
    web_search_requests: Count = None


class ChatUsage(msgspec.Struct):
    """A chat's usage object."""

    prompt_tokens: Count = None
    completion_tokens: Count = None
    total_tokens: Count = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    server_tool_use_details: _ToolDetails | None = None
    reasoning_tokens: Count = None
    cached_tokens: Count = None
    prompt_cache_hit_tokens: Count = None
    prompt_audio_seconds: Seconds = None
    num_search_queries: Count = None
    service_tier: Any = None


_ANSWER: Final = Lenient(_Answer)
_USAGE: Final = Lenient(ChatUsage)
_NO_INPUT_DETAILS: Final = _InputDetails()
_NO_OUTPUT_DETAILS: Final = _OutputDetails()
_NO_TOOL_DETAILS: Final = _ToolDetails()


class OpenAIChat(UsageReader):
    """Reads one chat completion."""

    usage_member = b"usage"
    finish_pattern = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,64})"')

    _usage = b""
    _look_for_model = MODEL_EVENTS_MAX

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
        answer = _ANSWER.read(document, self.flags)
        if answer is None:
            return
        if not self.model and (model := clean_text(answer.model, self.flags)):
            self.model = model
            self._look_for_model = 0
        if answer.service_tier is not None:
            self.service_tier = clean_text(answer.service_tier, self.flags) or self.service_tier
        if answer.error:
            self.tell_error()
        usages = []  # the last one holds
        for choice in answer.choices or ():
            reason = clean_text(choice.finish_reason, self.flags)
            if reason is not None:
                self.finish_reason = reason
                self.saw_end = self.saw_end or reason != ""
            if choice.usage is not _ABSENT:
                usages.append(choice.usage)
        if answer.x_groq is not None:
            usages.append(answer.x_groq.usage)
        usages.append(answer.usage)
        for usage in reversed(usages):
            if is_object(usage):
                self._usage = bytes(usage)
                self.final = self.saw_end
                return

    def raw_usage(self) -> bytes:
        """Return the last usage object."""
        return self._usage

    def counts(self, raw: bytes) -> Meters:
        """Return the counts, disjoint."""
        told = _USAGE.read(raw, self.flags)
        if told is None:
            return {}
        if told.service_tier is not None and not self.service_tier:
            self.service_tier = clean_text(told.service_tier, self.flags)
        return chat_meters(told, self.flags)


def chat_meters(told: ChatUsage, flags: Flags) -> Meters:
    """Return the counts of a chat's usage object, disjoint."""
    of_input = told.prompt_tokens_details or _NO_INPUT_DETAILS
    of_output = told.completion_tokens_details or _NO_OUTPUT_DETAILS
    of_tools = told.server_tool_use_details or _NO_TOOL_DETAILS
    reasoning = of_output.reasoning_tokens
    if reasoning is None:
        reasoning = told.reasoning_tokens
    audio = of_input.audio_tokens
    all_input, output = _whole_counts(told, reasoning=reasoning, audio=audio, flags=flags)
    cached = of_input.cached_tokens
    if cached is None:
        cached = told.cached_tokens
    if cached is None:
        cached = told.prompt_cache_hit_tokens
    uncached, cache_read, cache_write = disjoint_input(
        all_input, cached, of_input.cache_write_tokens, flags
    )
    return {
        "input_tokens": uncached,
        "cache_read_tokens": cache_read,
        "cache_write_tokens": cache_write,
        "output_tokens": output,
        "reasoning_tokens": reasoning
        and of_which(reasoning, output, Flag.REASONING_EXCEEDS_OUTPUT, flags),
        "audio_input_tokens": audio and of_which(audio, all_input, Flag.AUDIO_EXCEEDS_INPUT, flags),
        "audio_output_tokens": of_output.audio_tokens
        and of_which(of_output.audio_tokens, output, Flag.AUDIO_EXCEEDS_OUTPUT, flags),
        "image_input_tokens": of_input.image_tokens
        and of_which(of_input.image_tokens, all_input, Flag.IMAGE_EXCEEDS_INPUT, flags),
        "seconds": told.prompt_audio_seconds,
        "searches": of_tools.web_search_requests
        if told.num_search_queries is None
        else told.num_search_queries,
    }


def _whole_counts(
    told: ChatUsage, *, reasoning: int | None, audio: int | None, flags: Flags
) -> tuple[int | None, int | None]:
    """Return all input and all output, with what the vendor counts beside them.

    The total tells: what it has more than prompt and completion is the reasoning (xAI) or the
    audio (Mistral) that the vendor leaves out of them. Any other rest stays out, flagged: nothing
    says what it is.
    """
    prompt, completion, total = told.prompt_tokens, told.completion_tokens, told.total_tokens
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
    flags.raise_(Flag.TOTAL_DIFFERS)
    return prompt, completion
