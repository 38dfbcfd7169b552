"""Ways around the checks of what is stored, and around its metering, that lead nowhere."""

import pytest

from gateway.errors import BodyInvalid
from gateway.proxy.stored_ids import Stored
from gateway.proxy.stored_paths import Kind
from gateway.proxy.stored_uploads import check_metadata
from tests.gateway.proxy.rig import Rig
from tests.gateway.proxy.test_calls import answers, plain


@pytest.mark.parametrize(
    "uri",
    [
        "files/theirs",
        "https://generativelanguage.googleapis.com/v1beta/files/theirs",
        "https://GenerativeLanguage.googleapis.com/v1beta/%66iles/theirs",
    ],
)
async def test_an_interaction_names_files_in_a_uri_too(rig: Rig, uri: str) -> None:
    document = {"type": "document", "uri": uri, "mime_type": "application/pdf"}
    body = {"model": "gemini-2.5-flash", "input": [document]}
    answer = await rig.ask("/v1beta/interactions", body)
    assert answer.status == 404
    assert not rig.vendor.heads


@pytest.mark.parametrize(
    "uri", ["https://example.com/files/a.pdf", "gs://b/files/a", "s3://b/files/a", "data:,a"]
)
async def test_a_uri_of_something_else_passes(rig: Rig, uri: str) -> None:
    rig.vendor.script = answers(plain(200, {"id": "i1", "status": "completed"}))
    document = {"type": "document", "uri": uri, "mime_type": "application/pdf"}
    body = {"model": "gemini-2.5-flash", "input": [document]}
    assert (await rig.ask("/v1beta/interactions", body)).status == 200


@pytest.mark.parametrize(
    "metadata",
    [
        b'{"file":{"name":"files/victim"},"file":{"displayName":"a"}}',
        b'{"file":[{"name":"files/victim"}]}',
        b'{"file":{"Name":"files/victim"}}',
    ],
)
def test_a_files_name_is_found_wherever_a_reader_may_find_it(metadata: bytes) -> None:
    with pytest.raises(BodyInvalid):
        check_metadata(metadata)


async def test_a_part_of_an_answer_claims_nothing(rig: Rig) -> None:
    made = [Stored("resp_1", Kind.RESPONSE)]
    vendor_id = rig.targets[0].vendor_id
    rig.owned.note(made, caller=rig.caller, vendor_id=vendor_id, call_id="c")
    rig.vendor.script = answers(
        plain(206, {"id": "resp_1", "status": "completed", "usage": {"input_tokens": 1}})
    )
    await rig.ask("/v1/responses/resp_1", method="GET", headers=["Range: bytes=0-200"])
    assert b"range" not in rig.vendor.heads[0].lower()
    row = await rig.lines.row()
    assert (row["usage_source"], row.get("metered_object")) == ("none", None)


@pytest.mark.parametrize(
    "query", ["fields=candidates", "$fields=candidates", "%66ields=a", "alt=proto", "callback=f"]
)
async def test_an_answer_without_its_usage_can_t_be_asked_for(rig: Rig, query: str) -> None:
    path = f"/v1beta/models/gemini-2.5-flash:generateContent?{query}"
    answer = await rig.ask(path, {"contents": []}, headers=["X-Goog-FieldMask: candidates"])
    assert answer.status == 400
    assert not rig.vendor.heads
