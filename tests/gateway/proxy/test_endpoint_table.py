"""docs/endpoints.md says what is served; here it is held against the tables that serve it.

`python -m tests.gateway.proxy.test_endpoint_table` writes it anew.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gateway.metering.meter import MeterFormat
from gateway.proxy import cloud_paths, endpoints
from gateway.proxy.endpoints import Endpoint
from gateway.proxy.stored_paths import STORED_PATHS
from gateway.vendors.registry import KINDS

DOCUMENT = Path(__file__).parents[3] / "docs" / "endpoints.md"
HEAD = """\
# What is served

Each path of a client's format, and what becomes of it. `/{vendor}` may stand before any of them
and names the vendor; without it, an alias, the model or the format's default decides. A path that
is not here is a 404.

- **kinds**: the kinds of vendor (`kaixu vendor add --kind`) that it goes to.
- **relayed**: bytes pass as they are; *own* is the gateway's own answer, *filtered* a list that is
  cut down to the org's own.
- **metered**: by what the answer tells of usage, in this format; every relayed call has a row.
- **stored**: what it does with what the vendor keeps: *makes* something that is the org's from then
  on, *names* something that has to be the org's.
- **limited**: takes a unit of each monthly limit. Windows and caps on open calls hold for all.

This table is made from the gateway's own (`tests/gateway/proxy/test_endpoint_table.py`).
"""
COLUMNS = ("format", "method", "path", "kinds", "relayed", "metered", "stored", "limited")


class Served(NamedTuple):
    path: str
    endpoint: Endpoint


def served() -> Iterator[Served]:
    for path, one in endpoints._EXACT.items():
        yield Served(path, one)
    for (path, _), one in endpoints._IN_FORMAT.items():
        yield Served(path, one)
    for verb, one in endpoints._VERBS.items():
        yield Served("/v1beta/models/{model}:" + verb, one)
    for name, one in endpoints.LIST_MODELS.items():
        version = "/v1beta" if name == "gemini" else "/v1"
        if name != "ollama":  # whose list has a path of its own
            yield Served(f"{version}/models", one)
            yield Served(f"{version}/models/{{model}}", endpoints.GET_MODEL[name])
    for stored in STORED_PATHS:
        yield Served(stored.template, endpoints._STORED[stored])
    for operation, one in cloud_paths._DEPLOYED.items():
        yield Served("/openai/deployments/{model}" + operation, one)
    for path, one in cloud_paths._AZURE.items():
        yield Served(path, one)
    for operation, one in cloud_paths._BEDROCK.items():
        yield Served("/model/{model}" + operation, one)
    vertex = "/v1/projects/{}/locations/{}/publishers/"
    for publisher, verbs in (
        ("google", cloud_paths._OF_GOOGLE),
        ("anthropic", cloud_paths._OF_ANTHROPIC),
        ("{other}", cloud_paths._OF_OTHERS),
    ):
        for verb, one in verbs.items():
            yield Served(f"{vertex}{publisher}/models/{{model}}:{verb}", one)
    yield Served(
        f"{vertex}anthropic/models/{cloud_paths._COUNTING}:rawPredict", cloud_paths._ANTHROPIC_COUNT
    )


def row(path: str, one: Endpoint) -> tuple[str, ...]:
    use = one.stored
    kinds = [name for name, kind in KINDS.items() if one.routed_by in kind.groups]
    stored = []
    if use is not None:
        if use.tells is not None:
            stored.append("makes" if use.always else "makes, by `store`")
        if use.names:
            stored.append("names")
    relayed = "own" if one.is_own else "filtered" if use is not None and use.lists else "yes"
    return (
        one.wire.name,
        b", ".join(sorted(one.methods)).decode(),
        f"`{path}`",
        "" if one.is_own else ", ".join(sorted(kinds)),
        relayed,
        "" if one.meter == MeterFormat.NONE else str(one.meter),
        ", ".join(stored),
        "yes" if one.counts else "",
    )


def document() -> str:
    rows = sorted({row(*one) for one in served()}, key=lambda cells: (cells[0], cells[2], cells[1]))
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{HEAD}\n{table}\n"


def test_the_document_says_what_is_served() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), (
        "write it anew: python -m tests.gateway.proxy.test_endpoint_table"
    )


def test_every_path_that_is_relayed_has_a_kind_of_vendor() -> None:
    for path, one in served():
        assert one.is_own or any(one.routed_by in kind.groups for kind in KINDS.values()), path


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
