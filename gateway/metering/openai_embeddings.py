"""Usage of what OpenAI's shape answers in one piece: embeddings, reranking, generated images.

`usage` counts what was put in: `prompt_tokens` (embeddings), `input_tokens` (images, which count
their output too), or nothing but `total_tokens` (Voyage, Jina), which is all input where no output
is told. Images may stream: each `….completed` event has a usage, and an image ends with it. Where
another model wrote an SVG after the picture, its `svg_usage` is billed on top: it is kept, flagged,
among the vendor's usage.
"""

import re
from typing import Any, Final

import msgspec

from gateway.metering.lenient import Count, Lenient
from gateway.metering.sse import SSE_WHOLE_OUTPUT_BYTES_MAX, SseEvent
from gateway.metering.usage import (
    Flag,
    clean_text,
    first_of,
    join_members,
    of_which,
    split_members,
)
from gateway.metering.usage_reader import Meters, UsageReader, is_object

_IMAGE_DONE: Final = b'.completed"'


class _Answer(msgspec.Struct):
    type: Any = None
    model: Any = None
    usage: msgspec.Raw = msgspec.Raw()
    svg_usage: msgspec.Raw = msgspec.Raw()
    error: Any = None


class _InputDetails(msgspec.Struct):
    image_tokens: Count = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count = None
    input_tokens: Count = None
    completion_tokens: Count = None
    output_tokens: Count = None
    total_tokens: Count = None
    input_tokens_details: _InputDetails | None = None


_ANSWER: Final = Lenient(_Answer)
_USAGE: Final = Lenient(_Usage)


class OpenAIEmbeddings(UsageReader):
    """Reads one answer: vectors, a ranking, or images."""

    usage_member = b"usage"
    tail_members = (b"svg_usage",)
    event_bytes_max = SSE_WHOLE_OUTPUT_BYTES_MAX
    finish_pattern = re.compile(rb"(?!)")  # none of them says why it ended

    _usage = b""
    _svg_usage = b""

    def wants(self, raw: bytes) -> bool:
        """Return whether an image is done, or an error told."""
        return raw.find(_IMAGE_DONE) >= 0 or raw.find(b'"error"') >= 0

    def read_event(self, event: SseEvent) -> None:
        """Take in one event of a stream of images."""
        if event.name == b"error":
            self.tell_error()
        self.read_object(event.data)

    def read_object(self, document: bytes) -> None:
        """Take in an answer, or a part of one."""
        answer = _ANSWER.read(document, self.flags)
        if answer is None:
            return
        self.model = clean_text(answer.model, self.flags) or self.model
        if answer.error:
            self.tell_error()
        if is_object(answer.usage):
            self._usage = bytes(answer.usage)
            self.final = True
        if is_object(answer.svg_usage):
            self._svg_usage = bytes(answer.svg_usage)
            self.flags.raise_(Flag.ITERATIONS_ON_TOP)
        if isinstance(answer.type, str) and answer.type.endswith(".completed"):
            self.saw_end = True  # of an image, and more may come: it is not over

    def raw_usage(self) -> bytes:
        """Return the last usage object, with that of an SVG in it."""
        if self._svg_usage:
            members = split_members(self._usage) or {}
            return join_members({**members, "svg_usage": self._svg_usage})
        return self._usage

    def counts(self, raw: bytes) -> Meters:
        """Return the counts."""
        told = _USAGE.read(raw, self.flags)
        if told is None:
            return {}
        output = first_of(told.completion_tokens, told.output_tokens)
        total = told.total_tokens
        all_input = first_of(told.prompt_tokens, told.input_tokens)
        if all_input is None and output is None:
            all_input = total
        if None not in (all_input, total) and total != (all_input or 0) + (output or 0):
            self.flags.raise_(Flag.TOTAL_DIFFERS)
        details = told.input_tokens_details
        return {
            "input_tokens": all_input,
            "output_tokens": output,
            "image_input_tokens": None
            if details is None
            else of_which(details.image_tokens, all_input, Flag.IMAGE_EXCEEDS_INPUT, self.flags),
        }
