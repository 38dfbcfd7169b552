"""Usage of Vertex AI's predict, which embeddings of older models are asked for by.

Each prediction tells its tokens (`embeddings.statistics.token_count`), and `metadata` the billable
characters. `vendor_usage` has the first under that path.
"""

import re
from typing import Final

import msgspec

from gateway.metering.usage import Reported, join_members
from gateway.metering.usage_reader import Meters, UsageReader, is_object

PREDICTIONS_MAX: Final = 2048  # of one answer; the API takes 250 texts at once

_COUNTS: Final = "predictions[].embeddings.statistics.token_count"


class _Statistics(msgspec.Struct):
    token_count: int | None = None


class _Embeddings(msgspec.Struct):
    statistics: _Statistics | None = None


class _Prediction(msgspec.Struct):
    embeddings: _Embeddings | None = None


class _Answer(msgspec.Struct):
    predictions: msgspec.Raw = msgspec.Raw()
    metadata: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_PREDICTIONS: Final = msgspec.json.Decoder(list[_Prediction])


class VertexPredict(UsageReader):
    """Reads one answer of predict."""

    usage_member = b"metadata"
    finish_pattern = re.compile(rb"(?!)")  # nothing says why a vector ends

    def __init__(self) -> None:
        super().__init__()
        self._members: dict[str, bytes] = {}

    def wants(self, raw: bytes) -> bool:  # noqa: ARG002 - it never comes as a stream
        """Return True: there is one object."""
        return True

    def read_object(self, document: bytes) -> None:
        """Take in an answer, or a part of one."""
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        if bytes(answer.predictions).startswith(b"["):
            rows = self.decode(_PREDICTIONS, bytes(answer.predictions)) or []
            counts = [
                row.embeddings.statistics.token_count
                for row in rows[:PREDICTIONS_MAX]
                if row.embeddings is not None and row.embeddings.statistics is not None
            ]
            if counts:
                self._members[_COUNTS] = msgspec.json.encode(counts)
        if is_object(answer.metadata):
            self._members["metadata"] = bytes(answer.metadata)

    def raw_usage(self) -> bytes:
        """Return the counts and the metadata, joined."""
        return join_members(self._members) if self._members else b""

    def meters(self, reported: Reported) -> Meters:
        """Return the sum of the counts; one that can't be true is left out, and flagged."""
        listed = reported.at(_COUNTS)
        if not isinstance(listed, list):
            return {}
        told = [Reported({"n": one}, reported.flags).count("n") for one in listed]
        return {"input_tokens": sum(count or 0 for count in told)}
