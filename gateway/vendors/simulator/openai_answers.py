"""What the simulated vendor says where OpenAI's format has no stream: moderations, rerank.

Pure, as `formats.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from gateway.vendors.simulator import cohere_paths
from gateway.vendors.simulator.formats import (
    FORMATS,
    Ask,
    AskInvalid,
    Spent,
    words_in,
)

_CATEGORIES: Final = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def _model(document: Mapping[str, Any], other: str, *, default: str) -> str:
    """Return the model; `other` has to be there as well. Raises AskInvalid."""
    model = document.get("model", default)
    if not isinstance(model, str) or not isinstance(document.get(other), str | list):
        raise AskInvalid(f"you must provide {other}")
    return model


# ------------------------------------------------------------------------------------- moderations


def _moderations_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    told = document.get("input")
    return Ask(
        model=_model(document, "input", default="omni-moderation-latest"),
        stream=False,
        words=None,
        input_tokens=words_in(told, is_text=True),
        stream_usage=False,
        vectors=len(told) if isinstance(told, list) and told else 1,
    )


def _moderations_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    """Return verdicts, without a word on usage: they cost nothing."""
    del text, spent
    verdict = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.001),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    return orjson.dumps({"id": call_id, "model": ask.model, "results": [verdict] * ask.vectors})


# ------------------------------------------------------------------------------------------ rerank


def _rerank_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    """Return a ranking for whoever asks below /v1: Voyage reads `data`, Cohere and Jina `results`.

    Usage is told in the way of each.
    """
    del text
    ranking = cohere_paths.scores(ask.vectors)
    billed = {"search_units": 1}
    return orjson.dumps(
        {
            "id": call_id,
            "object": "list",
            "model": ask.model,
            "results": ranking,
            "data": ranking,
            "usage": {"total_tokens": spent.input_tokens, "billed_units": billed},
            "meta": {"api_version": {"version": "1"}, "billed_units": billed},
        }
    )


MODERATIONS: Final = replace(
    FORMATS["openai"], id_prefix="modr-", read=_moderations_read, plain=_moderations_plain
)
RERANK: Final = replace(
    FORMATS["openai"], id_prefix="", read=cohere_paths.RERANK.read, plain=_rerank_plain
)
