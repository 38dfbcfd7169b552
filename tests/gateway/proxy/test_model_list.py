import json
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.connect_guard import BaseUrl
from gateway.errors import BodyInvalid, NoRoute
from gateway.proxy.model_list import LISTED_MAX, PAGE_MAX, MayUse, ModelDirectory
from gateway.proxy.routing import RoutingTable, Target
from gateway.vendors.registry import FORMATS, KINDS


def target(
    name: str, kind: str, models: tuple[str, ...] | None = None, *, problem: str | None = None
) -> Target:
    return Target(
        vendor_id="id-" + name,
        name=name,
        kind=KINDS[kind],
        base=BaseUrl(scheme="https", host="api.example.com", port=443, path=""),
        is_private=False,
        is_default=False,
        models=models,
        asks_usage=False,
        account_headers=False,
        is_simulator=False,
        credential=(b"x-api-key", b"sk-vendor"),
        key=b"sk-vendor",
        problem=problem,
    )


TABLE = RoutingTable(
    [
        target("openai", "openai"),
        target("claude", "anthropic"),
        target("google", "gemini"),
        target("groq", "openai", ("llama-*", "named")),
    ],
    {"fast": ("groq", "llama-1"), "best": ("claude", "opus"), "lost": ("gone", "m")},
)


@pytest.fixture
def directory() -> ModelDirectory:
    directory = ModelDirectory()
    directory.update(
        "id-openai", ["gpt-5", "gpt-5-mini", "llama-1", "fast", "gpt-5"], 1_700_000_000
    )
    directory.update("id-claude", [f"claude-{n}" for n in range(30)], 1_700_000_000)
    directory.update("id-google", [f"gemini-{n}" for n in range(60)])
    directory.update("id-groq", ["llama-1", "llama-2", "whisper"])
    return directory


def listed(
    directory: ModelDirectory,
    wire: str = "openai",
    *,
    vendor: str | None = None,
    query: str = "",
    may_use: MayUse = lambda _: True,
    table: RoutingTable = TABLE,
) -> Any:
    body = directory.list_body(
        wire=FORMATS[wire], vendor=vendor, table=table, may_use=may_use, query=query.encode()
    )
    return json.loads(body)


def ids(answer: Mapping[str, Any]) -> list[str]:
    (rows,) = (answer[name] for name in ("data", "models", "modelSummaries") if name in answer)
    return [row.get("id") or row.get("modelId") or row["name"] for row in rows]


def test_openais_list_has_what_a_call_reaches_aliases_first(directory: ModelDirectory) -> None:
    answer = listed(directory)
    assert answer["object"] == "list"
    assert ids(answer) == ["fast", "gpt-5", "gpt-5-mini", "named", "llama-1", "llama-2"]
    assert answer["data"][1] == {
        "id": "gpt-5",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "openai",
        "type": "base",
        "capabilities": {},
    }
    assert [row["owned_by"] for row in answer["data"]] == [
        "groq", "openai", "openai", "groq", "groq", "groq",
    ]  # fmt: skip


def test_a_named_vendors_list_is_its_own_in_any_shape(directory: ModelDirectory) -> None:
    assert ids(listed(directory, vendor="groq")) == ["named", "llama-1", "llama-2", "whisper"]
    assert len(ids(listed(directory, vendor="claude"))) == 30
    with pytest.raises(NoRoute):
        listed(directory, vendor="nobody")


def test_a_token_sees_what_it_may_use(directory: ModelDirectory) -> None:
    def may_use(model: str) -> bool:
        return model in ("gpt-5", "llama-2", "gone")

    assert ids(listed(directory, may_use=may_use)) == ["gpt-5", "llama-2"]
    assert ids(listed(directory, vendor="groq", may_use=may_use)) == ["llama-2"]


def test_a_token_sees_what_the_vendors_that_it_may_call_have(directory: ModelDirectory) -> None:
    def answer(vendor: str | None) -> list[str]:
        body = directory.list_body(
            wire=FORMATS["openai"],
            vendor=vendor,
            table=TABLE,
            may_use=lambda _: True,
            may_call=lambda name: name == "openai",
        )
        return ids(json.loads(body))

    assert answer(None) == ["gpt-5", "gpt-5-mini"]
    assert answer("groq") == []


def test_anthropics_list_comes_in_pages_both_ways(directory: ModelDirectory) -> None:
    first = listed(directory, "anthropic")
    assert ids(first) == ["best", *(f"claude-{n}" for n in range(19))]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, "best", "claude-18")
    rest = listed(directory, "anthropic", query="after_id=claude-18&limit=1000&key=x")
    assert ids(rest) == [f"claude-{n}" for n in range(19, 30)]
    assert not rest["has_more"]
    back = listed(directory, "anthropic", query="before_id=claude-19&limit=2")
    assert (ids(back), back["has_more"]) == (["claude-17", "claude-18"], True)
    assert not listed(directory, "anthropic", query="before_id=claude-1&limit=2")["has_more"]
    assert first["data"][1] == {
        "type": "model",
        "id": "claude-0",
        "display_name": "claude-0",
        "created_at": "2023-11-14T22:13:20Z",
    }


def test_geminis_list_comes_in_pages(directory: ModelDirectory) -> None:
    seen: list[str] = []
    query = "pageSize=25"
    while query:
        page = listed(directory, "gemini", query=query)
        seen += ids(page)
        token = page.get("nextPageToken")
        query = f"pageSize=25&pageToken={token}" if token else ""
    assert seen == [f"models/gemini-{n}" for n in range(60)]
    assert len(ids(listed(directory, "gemini"))) == 50


@pytest.mark.parametrize(
    ("wire", "query"),
    [
        ("anthropic", "limit=0"),
        ("anthropic", "limit=-1"),
        ("anthropic", "limit=many"),
        ("anthropic", "limit=" + "9" * 5000),
        ("anthropic", "limit=%D9%A3"),
        ("anthropic", "after_id=nothing"),
        ("anthropic", "before_id=nothing"),
        ("anthropic", "before_id=best&after_id=best"),
        ("gemini", "pageSize=x"),
        ("gemini", "pageToken=nothing"),
        ("gemini", "&".join(f"a{n}=1" for n in range(100))),
    ],
)
def test_a_page_that_cannot_be_is_refused(directory: ModelDirectory, wire: str, query: str) -> None:
    with pytest.raises(BodyInvalid):
        listed(directory, wire, query=query)


def test_a_page_is_bounded() -> None:
    directory = ModelDirectory()
    directory.update("id-claude", [f"m{n}" for n in range(3000)])
    answer = listed(directory, "anthropic", query="limit=999999")
    assert len(answer["data"]) == PAGE_MAX


def test_a_list_without_pages_is_bounded_too() -> None:
    directory = ModelDirectory()
    vendors = ("a", "b")
    for vendor in vendors:
        directory.update(f"id-{vendor}", [f"{vendor}{n}" for n in range(LISTED_MAX)])
    table = RoutingTable([target(name, "openai", (name + "*",)) for name in vendors])
    assert len(ids(listed(directory, table=table))) == LISTED_MAX


def test_a_vendor_that_cannot_be_called_lists_nothing() -> None:
    table = RoutingTable([target("a", "openai", ("m",), problem="its key can't be opened")])
    assert ids(listed(ModelDirectory(), table=table)) == []


def test_an_empty_list_is_a_list() -> None:
    directory = ModelDirectory()
    table = RoutingTable([])
    for wire in FORMATS:
        assert ids(listed(directory, wire, table=table)) == []


@pytest.mark.parametrize(
    ("wire", "model", "field", "value"),
    [
        ("openai", "gpt-5", "object", "model"),
        ("openai", "fast", "owned_by", "groq"),
        ("anthropic", "best", "type", "model"),
        ("gemini", "gemini-3", "name", "models/gemini-3"),
    ],
)
def test_one_model_has_its_formats_shape(
    directory: ModelDirectory, wire: str, model: str, field: str, value: str
) -> None:
    body = directory.model_body(
        model, wire=FORMATS[wire], vendor=None, table=TABLE, may_use=lambda _: True
    )
    assert json.loads(body)[field] == value


@pytest.mark.parametrize("model", ["unknown", "whisper", "gemini-3", "lost", "best", "gpt-5"])
def test_a_model_that_a_call_does_not_reach_is_not_there(
    directory: ModelDirectory, model: str
) -> None:
    def may_use(name: str) -> bool:
        return name != "gpt-5"

    with pytest.raises(NoRoute):
        directory.model_body(
            model, wire=FORMATS["openai"], vendor=None, table=TABLE, may_use=may_use
        )


def test_a_new_list_replaces_the_one_before_and_lost_vendors_are_forgotten(
    directory: ModelDirectory,
) -> None:
    directory.update("id-groq", ["llama-9"])
    assert ids(listed(directory, vendor="groq")) == ["named", "llama-9"]
    directory.retain(["id-groq"])
    assert ids(listed(directory, vendor="claude")) == []
    assert ids(listed(directory, vendor="groq")) == ["named", "llama-9"]
