"""Usage of Mistral's document reading: pages, in `usage_info` at the end of the answer."""

import re
from typing import Final

import msgspec

from gateway.metering.usage import Reported
from gateway.metering.usage_reader import Meters, UsageReader, is_object, value


class _Answer(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()
    usage_info: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)


class MistralOcr(UsageReader):
    """Reads one answer; it never streams."""

    usage_member = b"usage_info"
    tail_members = (b"model",)
    finish_pattern = re.compile(rb"(?!)")  # it does not say why it ended

    def __init__(self) -> None:
        super().__init__()
        self._usage = b""

    def wants(self, raw: bytes) -> bool:  # noqa: ARG002 - no streams are known
        """Return True."""
        return True

    def read_object(self, document: bytes) -> None:
        """Take in an answer, or a part of one."""
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        self.model = self.text(answer.model) or self.model
        if value(answer.error):
            self.tell_error()
        if is_object(answer.usage_info):
            self._usage = bytes(answer.usage_info)
            self.final = True

    def raw_usage(self) -> bytes:
        """Return the usage object."""
        return self._usage

    def meters(self, reported: Reported) -> Meters:
        """Return the pages."""
        return {"pages": reported.count("pages_processed")}
