"""Models that tools, plugins and agents of a body are: a token's list holds for them."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.gateway.proxy.rig import Rig
from tests.gateway.proxy.test_media_calls import answers, reason


def tools(*tools: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"model": "small", "input": "x", "messages": [], "tools": tools, **members}


RESPONSES, MESSAGES, CHAT = "/v1/responses", "/v1/messages", "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"model": {"type": "string", "enum": ["big"]}}}
PLUGIN = {"id": "fusion", "models": ["small", "big"]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (RESPONSES, tools({"type": "image_generation", "model": "big"}), "tools[].model"),
        (RESPONSES, tools({"type": "image_generation", "Model": "big"}), "tools[].model"),
        (RESPONSES, tools({"type": "image_generation", "model": [1]}), "tools[].model"),
        (RESPONSES, tools({"type": "x", "tools": [{"model": "big"}]}), "tools[].model"),
        (RESPONSES, tools({"type": "x", "parameters": {"model": "big"}}), "tools[].model"),
        (MESSAGES, tools({"type": "advisor_20260301", "model": "big"}), "tools[].model"),
        (CHAT, tools(plugins=[PLUGIN]), "plugins[].models"),
        (CHAT, tools(plugins=[{"allowed_models": ["big*"]}]), "plugins[].allowed_models"),
        ("/v1beta/interactions", tools(agent="big"), "agent"),
        ("/v1beta/interactions", tools(agent={"name": "small"}), "agent"),
    ],
)
async def test_a_model_of_a_tool_a_plugin_or_an_agent_is_on_the_list_as_well(
    rig: Rig, path: str, body: dict[str, Any], param: str
) -> None:
    rig.vendor.script = answers("application/json", {})
    assert (await rig.ask(path, body)).status == 200
    rig.authenticated.caller = replace(rig.caller, models=("small",))
    answer = await rig.ask(path, body)
    assert reason(answer) == (403, "model_not_allowed")
    if path in (RESPONSES, CHAT):
        assert json.loads(answer.body)["error"]["param"] == param
    escaped = json.dumps(body).replace("big", "b\\u0069g").replace("odel", "\\u006fdel")
    escaped = escaped.replace("\\u006fdel", "odel", 1)  # the body's own, plain
    assert reason(await rig.ask(path, escaped.encode())) == (403, "model_not_allowed")
    assert len(rig.vendor.bodies) == 1


async def test_an_agent_on_the_list_stands_in_place_of_a_model(rig: Rig) -> None:
    rig.authenticated.caller = replace(rig.caller, models=("deep-*",))
    rig.vendor.script = answers("application/json", {})
    path = "/v1beta/interactions"
    assert (await rig.ask(path, {"agent": "deep-research", "input": "x"})).status == 200
    other = await rig.ask(path, {"agent": "wide-research", "input": "x"})
    assert reason(other) == (403, "model_not_allowed")
    for body in ({"input": "x"}, {"agent": None, "input": "x"}):
        assert reason(await rig.ask(path, body)) == (400, "body_invalid")
    elsewhere = await rig.ask("/v1/moderations", {"agent": "deep-research", "input": "x"})
    assert reason(elsewhere) == (400, "body_invalid")
    assert len(rig.vendor.bodies) == 1


@pytest.mark.parametrize(
    "body",
    [
        tools({"type": "image_generation", "model": "small"}, plugins=[{"models": ["small"]}]),
        tools({"type": "image_generation", "model": None}, agent=None, plugins=None),
        tools({"type": "function", "name": "f", "parameters": SCHEMA | {"model": "big"}}),
        tools({"type": "function", "function": {"name": "f", "parameters": {"model": "big"}}}),
        tools({"name": "f", "input_schema": SCHEMA}, {"functionDeclarations": [SCHEMA]}),
        tools(messages=[{"content": 'use "tools" with "model": "big"', "model": "big"}]),
    ],
)
async def test_what_a_tool_is_given_names_no_model(rig: Rig, body: dict[str, Any]) -> None:
    rig.authenticated.caller = replace(rig.caller, models=("small",))
    rig.vendor.script = answers("application/json", {})
    assert (await rig.ask(RESPONSES, body)).status == 200


@pytest.mark.parametrize("member", [b'"tools":[]', b'"t\\u006fols":[]'])
async def test_tools_that_readers_take_from_two_places_are_refused_under_a_list(
    rig: Rig, member: bytes
) -> None:
    rig.authenticated.caller = replace(rig.caller, models=("small",))
    body = b'{"model":"small","input":"x","tools":[{"type":"t","model":"big"}],%b}' % member
    assert reason(await rig.ask(RESPONSES, body)) == (400, "body_invalid")
    assert rig.vendor.heads == []
