"""Usage in Gemini's generateContent, streamGenerateContent and embedContent, there and on Vertex.

`usageMetadata` of the answer; in a stream the last one that counts anything: it is cumulative, but
a later one may withdraw a count. `promptTokenCount` includes what came from a cache; the prompts of
server-side tools are beside it, and thoughts beside `candidatesTokenCount`. The stream comes as
events or, without `alt=sse`, as a JSON array.
"""

import re
from typing import Any, Final

import msgspec

from gateway.metering.usage import Flag, Reported, disjoint_input
from gateway.metering.usage_reader import Meters, UsageReader, is_object, value

MODALITIES_MAX: Final = 64  # rows of a token count by modality

_PROMPT_DETAILS: Final = ("promptTokensDetails", "promptTokenDetails")  # the latter in embeddings


class _Answer(msgspec.Struct, rename="camel"):
    candidates: msgspec.Raw = msgspec.Raw()
    prompt_feedback: msgspec.Raw = msgspec.Raw()
    usage_metadata: msgspec.Raw = msgspec.Raw()
    model_version: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Candidate(msgspec.Struct, rename="camel"):
    finish_reason: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_CANDIDATES: Final = msgspec.json.Decoder(list[_Candidate] | None)


class GeminiGenerate(UsageReader):
    """Reads one generated content."""

    usage_member = b"usageMetadata"
    finish_pattern = re.compile(rb'"finishReason"\s*:\s*"([A-Z_]{1,64})"')

    def __init__(self) -> None:
        super().__init__()
        self._usage = b""
        self._counts = 0  # how many counts are in it

    def wants(self, raw: bytes) -> bool:  # noqa: ARG002 - nearly every event has usage
        """Return True: nearly every event of Gemini carries the usage so far."""
        return True

    def read_object(self, document: bytes) -> None:
        """Take in an answer, or one chunk of it."""
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        self.model = self.model or self.text(answer.model_version)
        if value(answer.error):
            self.tell_error()
        if is_object(answer.prompt_feedback):
            feedback = value(answer.prompt_feedback)
            self.saw_end = self.saw_end or bool(feedback and feedback.get("blockReason"))
        candidates = bytes(answer.candidates)
        for candidate in self.decode(_CANDIDATES, candidates) or () if candidates else ():
            if reason := self.text(candidate.finish_reason):
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

    def meters(self, reported: Reported) -> Meters:
        """Return the counts, disjoint."""
        thoughts = reported.count("thoughtsTokenCount")
        all_input = _sum(
            reported.count("promptTokenCount"), reported.count("toolUsePromptTokenCount")
        )
        output = _sum(reported.count("candidatesTokenCount"), thoughts)
        total = reported.count("totalTokenCount")
        if total is not None and total != (all_input or 0) + (output or 0):
            reported.flags.raise_(Flag.TOTAL_DIFFERS)
        uncached, cache_read, _ = disjoint_input(
            all_input, reported.count("cachedContentTokenCount"), None, reported.flags
        )
        self.service_tier = reported.text("serviceTier") or reported.text("trafficType")
        return {
            "input_tokens": uncached,
            "cache_read_tokens": cache_read,
            "output_tokens": output,
            "reasoning_tokens": thoughts,
            "audio_input_tokens": reported.of_which(
                _of_modality(reported, "AUDIO", *_PROMPT_DETAILS),
                all_input,
                Flag.AUDIO_EXCEEDS_INPUT,
            ),
            "audio_output_tokens": reported.of_which(
                _of_modality(reported, "AUDIO", "candidatesTokensDetails"),
                output,
                Flag.AUDIO_EXCEEDS_OUTPUT,
            ),
            "image_input_tokens": reported.of_which(
                _of_modality(reported, "IMAGE", *_PROMPT_DETAILS),
                all_input,
                Flag.IMAGE_EXCEEDS_INPUT,
            ),
        }


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None and other is None else (one or 0) + (other or 0)


def _of_modality(reported: Reported, modality: str, *members: str) -> int | None:
    """Return the tokens of one modality. A row without a count says 0: protobuf omits zeros."""
    told = (reported.at(name) for name in members)
    rows: Any = next((one for one in told if one is not None), None)
    if not isinstance(rows, list):
        return None
    counts = [
        Reported({"tokenCount": 0, **row}, reported.flags).count("tokenCount")
        for row in rows[:MODALITIES_MAX]
        if isinstance(row, dict) and row.get("modality") == modality
    ]
    said = [count for count in counts if count is not None]
    return sum(said) if said else None
