"""Usage in Gemini's generateContent, streamGenerateContent and embedContent, there and on Vertex.

`usageMetadata` of the answer; in a stream the last one that counts anything: it is cumulative, but
a later one may withdraw a count. `promptTokenCount` includes what came from a cache; the prompts of
server-side tools are beside it, and thoughts beside `candidatesTokenCount`. The stream comes as
events or, without `alt=sse`, as a JSON array.
"""

import re
from typing import Any, Final

import msgspec

from gateway.metering.lenient import Count, Lenient
from gateway.metering.usage import Flag, Reported, clean_text, disjoint_input, of_which
from gateway.metering.usage_reader import Meters, UsageReader, is_object

MODALITIES_MAX: Final = 64  # rows of a token count by modality


class _Candidate(msgspec.Struct, rename="camel"):
    finish_reason: Any = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: Any = None


class _Answer(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: msgspec.Raw = msgspec.Raw()
    model_version: Any = None
    error: Any = None


class _Usage(msgspec.Struct, rename="camel"):
    prompt_token_count: Count = None
    tool_use_prompt_token_count: Count = None
    candidates_token_count: Count = None
    thoughts_token_count: Count = None
    total_token_count: Count = None
    cached_content_token_count: Count = None
    prompt_tokens_details: Any = None
    prompt_token_details: Any = None  # in embeddings
    candidates_tokens_details: Any = None
    service_tier: Any = None
    traffic_type: Any = None


_ANSWER: Final = Lenient(_Answer)
_USAGE: Final = Lenient(_Usage)


class GeminiGenerate(UsageReader):
    """Reads one generated content."""

    usage_member = b"usageMetadata"
    finish_pattern = re.compile(rb'"finishReason"\s*:\s*"([A-Z_]{1,64})"')

    _usage = b""
    _counts = 0  # how many counts are in it

    def wants(self, raw: bytes) -> bool:  # noqa: ARG002 - nearly every event has usage
        """Return True: nearly every event of Gemini carries the usage so far."""
        return True

    def read_object(self, document: bytes) -> None:
        """Take in an answer, or one chunk of it."""
        answer = _ANSWER.read(document, self.flags)
        if answer is None:
            return
        self.model = self.model or clean_text(answer.model_version, self.flags)
        if answer.error:
            self.tell_error()
        feedback = answer.prompt_feedback
        if feedback is not None and feedback.block_reason:
            self.saw_end = True
        for candidate in answer.candidates or ():
            if reason := clean_text(candidate.finish_reason, self.flags):
                self.finish_reason = reason
                self.saw_end = True
        if is_object(answer.usage_metadata):
            self._read_usage(bytes(answer.usage_metadata))

    def _read_usage(self, raw: bytes) -> None:
        counts = raw.count(b'TokenCount"')
        if not counts and self._counts:
            return
        if counts < self._counts:
            self.flags.raise_(Flag.FIELDS_WITHDRAWN)
        self._usage = raw
        self._counts = counts
        self.final = self.saw_end

    def raw_usage(self) -> bytes:
        """Return the last usage that counts anything."""
        return self._usage

    def counts(self, raw: bytes) -> Meters:
        """Return the counts, disjoint."""
        told, flags = _USAGE.read(raw, self.flags), self.flags
        if told is None:
            return {}
        thoughts = told.thoughts_token_count
        all_input = _sum(told.prompt_token_count, told.tool_use_prompt_token_count)
        output = _sum(told.candidates_token_count, thoughts)
        total = told.total_token_count
        if total is not None and total != (all_input or 0) + (output or 0):
            flags.raise_(Flag.TOTAL_DIFFERS)
        uncached, cache_read, _ = disjoint_input(
            all_input, told.cached_content_token_count, None, flags
        )
        self.service_tier = clean_text(told.service_tier, flags) or clean_text(
            told.traffic_type, flags
        )
        of_input = told.prompt_tokens_details
        if of_input is None:
            of_input = told.prompt_token_details
        of_output = told.candidates_tokens_details
        return {
            "input_tokens": uncached,
            "cache_read_tokens": cache_read,
            "output_tokens": output,
            "reasoning_tokens": thoughts,
            "audio_input_tokens": of_which(
                self._of_modality("AUDIO", of_input), all_input, Flag.AUDIO_EXCEEDS_INPUT, flags
            ),
            "audio_output_tokens": of_which(
                self._of_modality("AUDIO", of_output), output, Flag.AUDIO_EXCEEDS_OUTPUT, flags
            ),
            "image_input_tokens": of_which(
                self._of_modality("IMAGE", of_input), all_input, Flag.IMAGE_EXCEEDS_INPUT, flags
            ),
        }

    def _of_modality(self, modality: str, rows: object) -> int | None:
        """Return the tokens of one modality. A row without a count says 0: protobuf omits zeros."""
        if not isinstance(rows, list):
            return None
        counts = [
            Reported({"tokenCount": 0, **row}, self.flags).count("tokenCount")
            for row in rows[:MODALITIES_MAX]
            if isinstance(row, dict) and row.get("modality") == modality
        ]
        said = [count for count in counts if count is not None]
        return sum(said) if said else None


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None and other is None else (one or 0) + (other or 0)
