"""Two orgs, one vendor key: every path of the tables and every name that a body may have, with the
other org's ids and with one's own. A path or a name that is new has no maker or no place here, and
fails."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import asyncpg
import pytest

from gateway.auth.caller import Caller
from gateway.proxy import endpoints
from gateway.proxy.endpoints import Endpoint
from gateway.proxy.stored_ids import Stored
from gateway.proxy.stored_objects import STORED_NAMES
from gateway.proxy.stored_owners import StoredOwners
from gateway.proxy.stored_pages import PAGE_BYTES_MAX
from gateway.proxy.stored_paths import STORED_PATHS, Kind, StoredPath
from gateway.vendors.simulator.__main__ import Server
from gateway.vendors.simulator.tally import Tally
from tests.gateway.proxy.rig import Answer, Rig, running

ANTHROPIC: Final = "anthropic-version: 2023-06-01"
GOOGLE: Final = "x-goog-api-client: google-genai-sdk/3.4.0"
LINE: Final[dict[str, Any]] = {
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two"}]},
}
NOT_YOURS: Final = (404, "not_yours")


def form(*fields: tuple[str, bytes]) -> bytes:
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (name.encode(), b'; filename="a.jsonl"' if name == "file" else b"", value)
        for name, value in fields
    ]
    return b"".join(parts) + b"--x--\r\n"


def batch_file(*lines: object) -> bytes:
    content = b"\n".join(json.dumps(line).encode() for line in lines)
    return form(("purpose", b"batch"), ("file", content))


class Shop:
    """A gateway of two orgs before a simulated vendor, with owners in a real database."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.owners = StoredOwners(pool, now=asyncio.get_running_loop().time, sleep=no_sleep)
        self.rig = Rig(self.owners)
        self.ours = self._caller()
        self.theirs = self._caller()
        self.simulator = Server(Tally(None))
        self.asked = 0

    def _caller(self) -> Caller:
        token_id, org_id, workspace_id, user_id = (str(uuid.uuid4()) for _ in range(4))
        return replace(
            self.rig.caller,
            limits=(),
            token_id=token_id,
            org_id=org_id,
            workspace_id=workspace_id,
            user_id=user_id,
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await self.simulator.serve(reader, writer)

    async def ask(
        self,
        by: Caller,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Sequence[str] = (),
        content_type: str | None = None,
    ) -> Answer:
        self.rig.authenticated.caller = by
        request = self.rig.request(path, body, method=method, headers=headers)
        if content_type is not None:
            request = request.replace(b"application/json", content_type.encode(), 1)
        async with self.rig.client() as client:
            client.send(request)
            return await client.answer()

    async def made(self, by: Caller, method: str, path: str, body: object, **more: Any) -> Any:
        answer = await self.ask(by, method, path, body, **more)
        assert answer.status == 200, answer
        return json.loads(answer.body)


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
async def shop(gateway_pool: asyncpg.Pool) -> AsyncIterator[Shop]:
    opened = Shop(gateway_pool)
    async with running(opened.rig, opened.serve):
        yield opened


async def new_response(shop: Shop, by: Caller) -> str:
    body = {"model": "gpt-5", "input": "one two"}
    return str((await shop.made(by, "POST", "/v1/responses", body))["id"])


async def new_conversation(shop: Shop, by: Caller) -> str:
    return str((await shop.made(by, "POST", "/v1/conversations", {}))["id"])


async def new_chat(shop: Shop, by: Caller) -> str:
    body = {"model": "gpt-4o", "messages": [], "store": True}
    return str((await shop.made(by, "POST", "/v1/chat/completions", body))["id"])


async def new_file(shop: Shop, by: Caller) -> str:
    more = {"content_type": "multipart/form-data; boundary=x"}
    return str((await shop.made(by, "POST", "/v1/files", batch_file(LINE), **more))["id"])


async def new_batch(shop: Shop, by: Caller) -> str:
    body = {"input_file_id": await new_file(shop, by), "endpoint": LINE["url"]}
    return str((await shop.made(by, "POST", "/v1/batches", body))["id"])


async def new_anthropic_file(shop: Shop, by: Caller) -> str:
    more = {"content_type": "multipart/form-data; boundary=x", "headers": [ANTHROPIC]}
    body = form(("file", b"text"))
    return str((await shop.made(by, "POST", "/v1/files", body, **more))["id"])


async def new_message_batch(shop: Shop, by: Caller) -> str:
    params = {"model": "claude-sonnet-5", "max_tokens": 3, "messages": []}
    body = {"requests": [{"custom_id": "1", "params": params}]}
    return str((await shop.made(by, "POST", "/v1/messages/batches", body))["id"])


async def new_cached_content(shop: Shop, by: Caller) -> str:
    body = {"model": "models/gemini-2.5-pro", "contents": []}
    made = await shop.made(by, "POST", "/v1beta/cachedContents", body)
    return str(made["name"]).partition("/")[2]


async def new_gemini_file(shop: Shop, by: Caller) -> str:
    body = b"--x\r\nContent-Type: application/json\r\n\r\n" + json.dumps({"file": {}}).encode()
    body += b"\r\n--x\r\nContent-Type: text/plain\r\n\r\nsome text\r\n--x--\r\n"
    path, more = "/upload/v1beta/files?uploadType=multipart", "multipart/related; boundary=x"
    made = await shop.made(by, "POST", path, body, content_type=more)
    return str(made["file"]["name"]).partition("/")[2]


async def new_interaction(shop: Shop, by: Caller) -> str:
    body = {"model": "gemini-2.5-flash", "input": "one two"}
    return str((await shop.made(by, "POST", "/v1beta/interactions", body))["id"])


Maker = Callable[[Shop, Caller], Awaitable[str]]
# Who makes what a path is about: by wire format, and by what stands before the id.
MAKERS: Final[dict[tuple[str, str], Maker]] = {
    ("openai", "/v1/responses"): new_response,
    ("openai", "/v1/conversations"): new_conversation,
    ("openai", "/v1/chat/completions"): new_chat,
    ("openai", "/v1/files"): new_file,
    ("openai", "/v1/batches"): new_batch,
    ("anthropic", "/v1/files"): new_anthropic_file,
    ("anthropic", "/v1/messages/batches"): new_message_batch,
    ("gemini", "/v1/cachedContents"): new_cached_content,
    ("gemini", "/v1/files"): new_gemini_file,
    ("gemini", "/v1/interactions"): new_interaction,
}
HEADERS: Final = {"openai": [], "anthropic": [ANTHROPIC], "gemini": [GOOGLE]}


def maker_of(path: StoredPath) -> Maker:
    collection = path.template.partition("/{")[0].removeprefix("/upload")
    return MAKERS[path.wire.name, collection.replace("/v1beta/", "/v1/")]


def named(path: StoredPath) -> str:
    return f"{path.wire.name} {path.method.decode()} {path.template}"


async def ask_path(shop: Shop, by: Caller, path: StoredPath, object_id: str, part: str) -> Answer:
    text = path.template.replace("{id}", object_id).replace("{}", part)
    headers = HEADERS[path.wire.name]
    body: object = None
    if path.body == "json":
        body = {"items": []} if path.items_in else {}
    return await shop.ask(by, path.method.decode(), text, body, headers=headers)


async def part_of(shop: Shop, by: Caller, path: StoredPath, object_id: str) -> str:
    if "{}" not in path.template:
        return ""
    body = {"items": [{"type": "message", "role": "user", "content": "hi"}]}
    made = await shop.made(by, "POST", f"/v1/conversations/{object_id}/items", body)
    return str(made["data"][0]["id"])


@pytest.mark.parametrize("path", [one for one in STORED_PATHS if one.use.names], ids=named)
async def test_who_made_an_object_has_it_and_nobody_else(shop: Shop, path: StoredPath) -> None:
    object_id = await maker_of(path)(shop, shop.ours)
    part = await part_of(shop, shop.ours, path, object_id)
    rows = len(shop.rig.lines.rows)
    refused = await ask_path(shop, shop.theirs, path, object_id, part)
    assert (refused.status, refused.headers["x-kaixu-reason"]) == NOT_YOURS
    assert object_id.encode() not in refused.body
    assert len(shop.rig.lines.rows) == rows, "the vendor was asked"
    answer = await ask_path(shop, shop.ours, path, object_id, part)
    assert answer.status == 200, answer
    assert len(shop.rig.lines.rows) == rows + 1
    elsewhere = await ask_path(shop, shop.ours, path, "of-nobody", part)
    assert (elsewhere.status, elsewhere.headers["x-kaixu-reason"]) == NOT_YOURS


@pytest.mark.parametrize("path", [one for one in STORED_PATHS if one.use.lists], ids=named)
async def test_a_list_has_ones_own_and_nothing_of_others(shop: Shop, path: StoredPath) -> None:
    make = maker_of(path)
    ours = [await make(shop, shop.ours), await make(shop, shop.ours)]
    theirs = await make(shop, shop.theirs)
    headers = HEADERS[path.wire.name]
    for by, own, others in ((shop.ours, ours, [theirs]), (shop.theirs, [theirs], ours)):
        answer = await shop.ask(by, "GET", path.template, headers=headers)
        assert answer.status == 200
        rows = json.loads(answer.body)[path.use.lists]
        listed = {row.get("id") or row["name"].partition("/")[2] for row in rows}
        assert set(own) <= listed
        assert not any(one.encode() in answer.body for one in others)
    third = replace(shop.ours, org_id=str(uuid.uuid4()))
    answer = await shop.ask(third, "GET", path.template, headers=headers)
    assert json.loads(answer.body)[path.use.lists] == []
    if path.wire.name != "gemini":
        cursor = await shop.ask(shop.theirs, "GET", f"{path.template}?after={ours[0]}")
        assert (cursor.status, cursor.headers["x-kaixu-reason"]) == NOT_YOURS


@pytest.mark.parametrize("version", ["v1", "v1beta"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("command", ["upload", "upload, finalize", "finalize", "query", "cancel"])
async def test_who_began_an_upload_goes_on_with_it_and_nobody_else(
    shop: Shop, version: str, method: str, command: str
) -> None:
    path = f"/upload/{version}/files"
    begin = ["x-goog-upload-protocol: resumable", "x-goog-upload-command: start"]
    begun = await shop.ask(shop.ours, "POST", path, {"file": {}}, headers=begin)
    assert begun.status == 200, begun
    address = begun.headers["x-goog-upload-url"].removeprefix("http://gateway")
    rows = len(shop.rig.lines.rows)
    headers = [f"x-goog-upload-command: {command}", "x-goog-upload-offset: 0"]
    more: dict[str, Any] = {"headers": headers, "content_type": "text/plain"}
    refused = await shop.ask(shop.theirs, method, address, b"words", **more)
    assert (refused.status, refused.headers["x-kaixu-reason"]) == NOT_YOURS
    unknown = await shop.ask(shop.ours, method, path + "?upload_id=of-nobody", b"", **more)
    assert (unknown.status, unknown.headers["x-kaixu-reason"]) == NOT_YOURS
    assert len(shop.rig.lines.rows) == rows, "the vendor was asked"
    answer = await shop.ask(shop.ours, method, address, b"words", **more)
    assert answer.status == 200, answer
    if "finalize" in command:
        name = json.loads(answer.body)["file"]["name"]
        file = f"/{version}/{name}"
        assert (await shop.ask(shop.ours, "GET", file, headers=[GOOGLE])).status == 200
        theirs = await shop.ask(shop.theirs, "GET", file, headers=[GOOGLE])
        assert (theirs.status, theirs.headers["x-kaixu-reason"]) == NOT_YOURS


# --------------------------------------------------------------------------------- names in bodies

EXACT: Final = {one.name: path for path, one in endpoints._EXACT.items() if one.body == "json"}
PATHS: Final[list[tuple[str, str, Endpoint]]] = [
    *(("POST", path, endpoints._EXACT[path]) for path in EXACT.values()),
    *(
        ("POST", f"/v1beta/models/gemini-2.5-pro:{verb}", one)
        for verb, one in endpoints._VERBS.items()
    ),
    *(
        (one.method.decode(), one.template.replace("{id}", "held").replace("{}", "part"), endpoint)
        for one, endpoint in endpoints._STORED.items()
        if one.body == "json"
    ),
]
VALUES: Final[dict[str, Callable[[str], object]]] = {
    "vector_store_ids": lambda object_id: [object_id],
    "file_ids": lambda object_id: ["own", object_id],
    "fileSearchStoreNames": lambda object_id: [object_id],
    "file_search_store_names": lambda object_id: [object_id],
    "audio": lambda object_id: {"id": object_id},
    "prompt": lambda object_id: {"id": object_id},
    "voice": lambda object_id: {"id": object_id},
    "fileUri": lambda object_id: f"https://generativelanguage.googleapis.com/v1beta/{object_id}",
    "file_uri": lambda object_id: object_id,
}


def own(rig: Rig, *ids: str, by: Caller, target: str | None = None) -> None:
    """Have these made by someone at one vendor, else the first, as files that may begin a batch."""
    vendor_ids = {one.name: one.vendor_id for one in rig.targets}
    vendor_id = vendor_ids[target] if target else rig.targets[0].vendor_id
    for object_id in ids:
        made = [Stored(object_id, Kind.BATCH_INPUT)]
        rig.owned.note(made, caller=by, vendor_id=vendor_id, call_id="c")


@pytest.mark.parametrize(
    ("method", "path", "endpoint"), PATHS, ids=[f"{line[0]} {line[1]}" for line in PATHS]
)
async def test_a_body_names_only_what_its_caller_made(
    rig: Rig, method: str, path: str, endpoint: Endpoint
) -> None:
    rig.targets = [*rig.targets, rig.target("cohere"), rig.target("ollama")]
    rig.targets = [one for one in rig.targets if one.kind.wire is endpoint.wire]
    rig.authenticated.caller = replace(rig.caller, limits=())
    own(rig, "own", "held", "cachedContents/held", "files/ours", by=rig.caller)
    own(rig, "files/theirs", by=replace(rig.caller, org_id="org-2"))
    model = "gemini-2.5-pro" if endpoint.wire.name == "gemini" else "some-model"
    reached: list[bytes] = []

    async def script(head: bytes, sent: bytes, writer: asyncio.StreamWriter) -> None:
        reached.append(sent)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
        )

    rig.vendor.script = script
    for name in STORED_NAMES:
        value = VALUES.get(name, str)
        bodies = [
            json.dumps(
                {"deep": [{"er": {name: value(object_id), "type": "custom"}}], "model": model}
            ).encode()
            for object_id in ("files/theirs", "files/ours")
        ]
        refused = await rig.ask(path, bodies[0], method=method)
        assert (refused.status, refused.headers["x-kaixu-reason"]) == NOT_YOURS, name
        assert not reached, f"the vendor was asked with {name}"
        answer = await rig.ask(path, bodies[1], method=method)
        assert (answer.status, reached) == (200, [bodies[1]]), (name, answer)
        reached.clear()


@pytest.mark.parametrize(
    ("path", "member"), [("/v1/responses", "input"), ("/v1/conversations", "items")]
)
async def test_items_are_named_by_their_id_alone(rig: Rig, path: str, member: str) -> None:
    own(rig, "msg_theirs", by=replace(rig.caller, org_id="org-2"))
    items = [{"type": "item_reference", "id": "msg_theirs"}]
    answer = await rig.ask(path, {"model": "gpt-5", member: items})
    assert (answer.status, answer.headers["x-kaixu-reason"]) == NOT_YOURS
    assert json.loads(answer.body)["error"]["param"] == member
    assert not rig.vendor.heads


async def test_an_id_that_a_client_gave_to_an_item_is_nobodys(rig: Rig) -> None:
    own(rig, "conv_1", by=rig.caller)
    told = [{"type": "message", "id": one} for one in ("msg_theirs", "msg_given")]
    answer = json.dumps({"object": "list", "data": told}).encode()

    async def script(_: bytes, __: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(answer), answer))

    rig.vendor.script = script
    message = b'{"type":"message","role":"user","content":"hi"'
    sent = b'{"items":[%b,"i\\u0064":"msg_theirs"},%b}]}' % (message, message)
    assert (await rig.ask("/v1/conversations/conv_1/items", sent)).status == 200
    again = [{"type": "item_reference", "id": "msg_theirs"}]
    refused = await rig.ask("/v1/responses", {"model": "gpt-5", "input": again})
    assert (refused.status, refused.headers["x-kaixu-reason"]) == NOT_YOURS
    again[0]["id"] = "msg_given"
    assert (await rig.ask("/v1/responses", {"model": "gpt-5", "input": again})).status == 200


async def test_items_of_ones_own_response_may_be_named(shop: Shop) -> None:
    body = {"model": "gpt-5", "input": "hi", "stream": True}
    streamed = await shop.ask(shop.ours, "POST", "/v1/responses", body)
    item_id = streamed.body.split(b'"item":{"id":"')[1].split(b'"')[0].decode()
    again = {"model": "gpt-5", "input": [{"type": "item_reference", "id": item_id}]}
    assert (await shop.ask(shop.ours, "POST", "/v1/responses", again)).status == 200
    refused = await shop.ask(shop.theirs, "POST", "/v1/responses", again)
    assert (refused.status, refused.headers["x-kaixu-reason"]) == NOT_YOURS


async def test_an_object_goes_to_who_holds_it_and_not_to_its_formats_default(shop: Shop) -> None:
    first = shop.rig.targets[0]
    other = replace(first, vendor_id=str(uuid.uuid4()), name="other", is_default=False)
    shop.rig.targets.append(replace(other, models=("special",)))
    body = {"model": "special", "input": "hi"}
    made = await shop.made(shop.ours, "POST", "/v1/responses", body)
    answer = await shop.ask(shop.ours, "GET", f"/v1/responses/{made['id']}")
    assert answer.status == 200
    assert (await shop.rig.lines.row())["vendor"] == "other"
    elsewhere = await shop.ask(shop.ours, "GET", f"/openai/v1/responses/{made['id']}")
    assert (elsewhere.status, elsewhere.headers["x-kaixu-reason"]) == NOT_YOURS
    named_at = {"model": "gpt-5", "input": "hi", "previous_response_id": made["id"]}
    at_another = await shop.ask(shop.ours, "POST", "/v1/responses", named_at)
    assert (at_another.status, at_another.headers["x-kaixu-reason"]) == NOT_YOURS


# ----------------------------------------------------------------------------------------- batches


async def test_a_batch_is_metered_once_whatever_tells_of_it(shop: Shop) -> None:
    batch_id = await new_batch(shop, shop.ours)
    rows = shop.rig.lines.rows
    assert (rows[-1]["flags"], rows[-1]["usage_source"]) == (["deferred"], "none")
    batch = json.loads((await shop.ask(shop.ours, "GET", f"/v1/batches/{batch_id}")).body)
    assert (rows[-1]["input_tokens"], rows[-1]["output_tokens"]) == (2, 20)
    assert (rows[-1]["metered_object"], rows[-1]["flags"]) == (batch_id, ["deferred"])
    content = f"/v1/files/{batch['output_file_id']}/content"
    lines = await shop.ask(shop.ours, "GET", content)
    assert lines.body.count(b"\n") == 1
    assert (rows[-1]["input_tokens"], rows[-1]["output_tokens"]) == (2, 20)
    assert (rows[-1]["metered_object"], rows[-1]["model_served"]) == (batch_id, "gpt-4o")
    refused = await shop.ask(shop.theirs, "GET", content)
    assert (refused.status, refused.headers["x-kaixu-reason"]) == NOT_YOURS
    plain = await shop.ask(shop.ours, "GET", f"/v1/files/{batch['input_file_id']}/content")
    assert plain.status == 200
    assert (rows[-1]["usage_source"], rows[-1]["metered_object"]) == ("none", None)


async def test_the_results_of_a_message_batch_are_summed_and_fetched_through_us(
    shop: Shop,
) -> None:
    params = {"model": "claude-sonnet-5", "max_tokens": 3, "messages": []}
    requests = [{"custom_id": str(n), "params": params} for n in range(3)]
    made = await shop.made(shop.ours, "POST", "/v1/messages/batches", {"requests": requests})
    assert made["results_url"] == f"/v1/messages/batches/{made['id']}/results"
    results = await shop.ask(shop.ours, "GET", made["results_url"])
    assert results.body.count(b"\n") == 3
    row = shop.rig.lines.rows[-1]
    assert (row["output_tokens"], row["usage_source"], row["flags"]) == (9, "vendor", ["deferred"])
    assert (row["metered_object"], row["model_served"]) == (made["id"], "claude-sonnet-5")


async def test_results_of_any_size_pass_as_they_are(rig: Rig) -> None:
    own(rig, "batch_1", by=rig.caller, target="anthropic")
    usage = b'"usage":{"input_tokens":1,"output_tokens":2}'
    text = b'"results_url":"https://a/v1/messages/batches/b","text":"%b"' % (b"x" * 100_000)
    line = b'{"result":{"type":"succeeded","message":{%b,"content":[{%b}]}}}\n' % (usage, text)
    results = line * 90
    assert len(results) > PAGE_BYTES_MAX

    async def script(_: bytes, __: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-jsonl\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(results), results))

    rig.vendor.script = script
    path = "/v1/messages/batches/batch_1/results"
    answer = await rig.ask(path, method="GET", headers=[ANTHROPIC])
    assert (answer.status, answer.body == results) == (200, True)
    assert (await rig.lines.row())["output_tokens"] == 180


@pytest.mark.parametrize("limit", [{"limits": (("token", "t"),)}, {"models": ("*",)}])
async def test_a_limit_or_a_list_keeps_a_token_from_batches(
    shop: Shop, limit: dict[str, Any]
) -> None:
    message = {"requests": [{"params": {"model": "claude-x"}}]}
    file_id = await new_file(shop, shop.ours)
    bound = replace(shop.ours, **limit)
    bodies = (("/v1/batches", {"input_file_id": file_id}), ("/v1/messages/batches", message))
    for path, body in bodies:
        refused = await shop.ask(bound, "POST", path, body)
        assert (refused.status, refused.headers["x-kaixu-reason"]) == (403, "model_not_allowed")
        allowed = replace(bound, scopes=frozenset({"calls", "batches"}))
        assert (await shop.ask(allowed, "POST", path, body)).status == 200


async def test_every_model_of_a_message_batch_has_to_be_allowed(shop: Shop) -> None:
    by = replace(shop.ours, models=("claude-a*",), scopes=frozenset({"calls", "batches"}))
    requests = [{"params": {"model": "claude-a1"}}, {"params": {"model": "claude-b1"}}]
    refused = await shop.ask(by, "POST", "/v1/messages/batches", {"requests": requests})
    assert (refused.status, refused.headers["x-kaixu-reason"]) == (403, "model_not_allowed")
    twice = b'{"requests":[{"params":{"model":"claude-b1","model":"claude-a1"}}]}'
    assert (await shop.ask(by, "POST", "/v1/messages/batches", twice)).status == 403


async def test_every_model_of_a_batchs_file_has_to_be_allowed(shop: Shop) -> None:
    by = replace(shop.ours, models=("gpt-4o",), scopes=frozenset({"calls", "batches"}))
    more = "multipart/form-data; boundary=x"
    bodies: tuple[dict[str, Any], ...] = ({**LINE["body"], "model": "gpt-5"}, {"messages": []})
    for body in bodies:
        upload = batch_file(LINE, {**LINE, "body": body})
        refused = await shop.ask(by, "POST", "/v1/files", upload, content_type=more)
        assert (refused.status, refused.headers["x-kaixu-reason"]) == (403, "model_not_allowed")
        at_will = await shop.ask(shop.ours, "POST", "/v1/files", upload, content_type=more)
        assert at_will.status == 200
    batch = {"input_file_id": await new_file(shop, by), "endpoint": LINE["url"]}
    assert (await shop.ask(by, "POST", "/v1/batches", batch)).status == 200


async def test_a_batchs_file_that_cant_be_read_is_refused(shop: Shop) -> None:
    lines = json.dumps(LINE).encode("utf-16-le")
    more = "multipart/form-data; boundary=x"
    upload = form(("purpose", b"batch"), ("file", lines))
    refused = await shop.ask(shop.ours, "POST", "/v1/files", upload, content_type=more)
    assert (refused.status, refused.headers["x-kaixu-reason"]) == (400, "body_invalid")


async def test_a_line_of_a_batch_names_only_what_its_uploader_made(shop: Shop) -> None:
    theirs = await new_file(shop, shop.theirs)
    content = [{"type": "file", "file": {"file_id": theirs}}]
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}
    upload = batch_file(LINE, {**LINE, "body": body})
    more = "multipart/form-data; boundary=x"
    refused = await shop.ask(shop.ours, "POST", "/v1/files", upload, content_type=more)
    assert (refused.status, refused.headers["x-kaixu-reason"]) == NOT_YOURS
    assert (
        await shop.ask(shop.theirs, "POST", "/v1/files", upload, content_type=more)
    ).status == 200


async def test_only_a_file_that_was_looked_at_begins_a_batch(shop: Shop) -> None:
    upload = form(("purpose", b"user_data"), ("file", b"{}"))
    more = "multipart/form-data; boundary=x"
    made = await shop.made(shop.ours, "POST", "/v1/files", upload, content_type=more)
    refused = await shop.ask(shop.ours, "POST", "/v1/batches", {"input_file_id": made["id"]})
    assert (refused.status, refused.headers["x-kaixu-reason"]) == (400, "body_invalid")


# ------------------------------------------------------------------------------------ metered once


async def test_a_response_in_the_background_is_metered_when_it_is_fetched(shop: Shop) -> None:
    body = {"model": "gpt-5", "input": "one two", "background": True}
    made = await shop.made(shop.ours, "POST", "/v1/responses", body)
    rows = shop.rig.lines.rows
    assert (made["status"], rows[-1]["flags"], rows[-1]["counted"]) == (
        "queued",
        ["deferred"],
        True,
    )
    assert rows[-1]["metered_object"] is None
    for query in ("", "?stream=true"):
        await shop.ask(shop.ours, "GET", f"/v1/responses/{made['id']}{query}")
        assert (rows[-1]["input_tokens"], rows[-1]["output_tokens"]) == (2, 20)
        assert (rows[-1]["metered_object"], rows[-1]["flags"]) == (made["id"], ["deferred"])
        assert rows[-1]["counted"] is False


@pytest.mark.parametrize(
    ("member", "name"),
    [
        (b'"conversation":"conv_1"', "conversation"),
        (b'"conversation":{"id":"conv_1"}', "conversation"),
        (b'"c\\u006fnversation":"conv_1"', "conversation"),
        (b'"request_id":"resp_mine"', "request_id"),
    ],
)
async def test_what_could_not_be_metered_is_not_done_in_the_background(
    rig: Rig, member: bytes, name: str
) -> None:
    own(rig, "conv_1", by=rig.caller)
    body = b'{"model":"gpt-5","input":"hi","background":true,%b}' % member
    refused = await rig.ask("/v1/responses", body)
    assert (refused.status, refused.headers["x-kaixu-reason"]) == (400, "body_invalid")
    assert json.loads(refused.body)["error"]["param"] == name
    assert not rig.vendor.heads


async def test_a_conversation_that_is_null_is_none(shop: Shop) -> None:
    body = {"model": "gpt-5", "input": "hi", "background": True, "conversation": None}
    await shop.made(shop.ours, "POST", "/v1/responses", body)


async def test_a_response_that_was_metered_says_whose_usage_that_was(shop: Shop) -> None:
    await new_response(shop, shop.ours)
    row = shop.rig.lines.rows[-1]
    assert row["metered_object"].startswith("resp_")
    unstored = {"model": "gpt-5", "input": "hi", "store": False}
    made = await shop.made(shop.ours, "POST", "/v1/responses", unstored)
    assert shop.rig.lines.rows[-1]["metered_object"] is None
    refused = await shop.ask(shop.ours, "GET", f"/v1/responses/{made['id']}")
    assert (refused.status, refused.headers["x-kaixu-reason"]) == NOT_YOURS
