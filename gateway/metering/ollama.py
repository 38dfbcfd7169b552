"""Usage of Ollama's own API: two counts beside the answer, in a stream in the line that is `done`.

`prompt_eval_count` is missing where the whole prompt was still in the server's memory. Embeddings
have no other count. How long each part took is no usage.
"""

import re
from typing import Final

import msgspec

from gateway.metering.usage import Reported, join_members
from gateway.metering.usage_reader import Meters, UsageReader, value

_DONE: Final = re.compile(rb'"done"\s*:\s*true')


class _Answer(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()
    done: msgspec.Raw = msgspec.Raw()
    done_reason: msgspec.Raw = msgspec.Raw()
    prompt_eval_count: msgspec.Raw = msgspec.Raw()
    eval_count: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)


class Ollama(UsageReader):
    """Reads one answer: a chat, a completion, or embeddings."""

    usage_member = b"total_duration"  # the counts follow it
    finish_pattern = re.compile(rb'"done_reason"\s*:\s*"([a-z_]{1,64})"')

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, bytes] = {}

    def wants(self, raw: bytes) -> bool:
        """Return whether the stream ends here, or an error is told."""
        return self.model is None or raw.find(b'"error"') >= 0 or _DONE.search(raw) is not None

    def read_object(self, document: bytes) -> None:
        """Take in an answer, a part of one, or a line."""
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        self.model = self.text(answer.model) or self.model
        self.finish_reason = self.text(answer.done_reason) or self.finish_reason
        if value(answer.error):
            self.tell_error()
        for name in ("prompt_eval_count", "eval_count"):
            count = bytes(getattr(answer, name))
            if count:
                self._counts[name] = count
        if value(answer.done) is True:
            self.saw_end = True
            self.final = True
            self.is_over = True

    def raw_usage(self) -> bytes:
        """Return the counts as an object."""
        return join_members(self._counts) if self._counts else b""

    def meters(self, reported: Reported) -> Meters:
        """Return the counts."""
        return {
            "input_tokens": reported.count("prompt_eval_count"),
            "output_tokens": reported.count("eval_count"),
        }
