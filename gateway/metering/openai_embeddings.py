"""Usage of what OpenAI's shape answers in one piece: embeddings, reranking, generated images.

`usage` counts what was put in: `prompt_tokens` (embeddings), `input_tokens` (images, which count
their output too), or nothing but `total_tokens` (Voyage, Jina), which is all input where no output
is told. Images may stream: each `….completed` event has a usage, and an image ends with it. Where
another model wrote an SVG after the picture, its `svg_usage` is billed on top: it is kept, flagged,
among the vendor's usage.
"""

import re
from typing import Final

import msgspec

from gateway.metering.sse import SSE_WHOLE_OUTPUT_BYTES_MAX, SseEvent
from gateway.metering.usage import Flag, Reported, join_members, split_members
from gateway.metering.usage_reader import Meters, UsageReader, is_object, value

_IMAGE_DONE: Final = b'.completed"'


class _Answer(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    svg_usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)


class OpenAIEmbeddings(UsageReader):
    """Reads one answer: vectors, a ranking, or images."""

    usage_member = b"usage"
    tail_members = (b"svg_usage",)
    event_bytes_max = SSE_WHOLE_OUTPUT_BYTES_MAX
    finish_pattern = re.compile(rb"(?!)")  # none of them says why it ended

    def __init__(self) -> None:
        super().__init__()
        self._usage = b""
        self._svg_usage = b""

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
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        self.model = self.text(answer.model) or self.model
        if value(answer.error):
            self.tell_error()
        if is_object(answer.usage):
            self._usage = bytes(answer.usage)
            self.final = True
        if is_object(answer.svg_usage):
            self._svg_usage = bytes(answer.svg_usage)
            self.flags.raise_(Flag.ITERATIONS_ON_TOP)
        kind = value(answer.type)
        if isinstance(kind, str) and kind.endswith(".completed"):
            self.saw_end = True  # of an image, and more may come: it is not over

    def raw_usage(self) -> bytes:
        """Return the last usage object, with that of an SVG in it."""
        if self._svg_usage:
            members = split_members(self._usage) or {}
            return join_members({**members, "svg_usage": self._svg_usage})
        return self._usage

    def meters(self, reported: Reported) -> Meters:
        """Return the counts."""
        output = reported.first_count(("completion_tokens",), ("output_tokens",))
        total = reported.count("total_tokens")
        told = reported.first_count(("prompt_tokens",), ("input_tokens",))
        all_input = total if told is None and output is None else told
        if None not in (all_input, total) and total != (all_input or 0) + (output or 0):
            reported.flags.raise_(Flag.TOTAL_DIFFERS)
        return {
            "input_tokens": all_input,
            "output_tokens": output,
            "image_input_tokens": reported.of_which(
                reported.count("input_tokens_details", "image_tokens"),
                all_input,
                Flag.IMAGE_EXCEEDS_INPUT,
            ),
        }
