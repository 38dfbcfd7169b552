import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.connect_guard import check_base_url
from gateway.proxy.error_responses import MASKED_KEY_BYTES_MIN
from gateway.vendors.presets import BASE_URL_FORMS, PLACEHOLDER_KEY, PRESETS
from gateway.vendors.registry import KINDS, check_vendor_name

RECORDINGS = Path(
    os.environ.get("KAIXU_RECORDINGS")  # noqa: TID251 - the test run's own setting
    or Path(__file__).resolve().parents[3].parent / "shared" / "vendor-recordings"
)


@pytest.mark.parametrize("name", [name for name, one in PRESETS.items() if one.base_url])
def test_every_preset_can_be_added_as_it_is(name: str) -> None:
    preset = PRESETS[name]
    assert check_vendor_name(name) == name
    base_url = check_base_url(preset.base_url, allow_private=preset.is_private)
    assert str(base_url) == preset.base_url
    assert (base_url.scheme == "http") is preset.is_private
    assert not preset.usage_unasked or KINDS[preset.kind].needs_usage_asked


def test_where_a_preset_has_no_address_its_kind_tells_the_form() -> None:
    without = {one.kind for one in PRESETS.values() if not one.base_url}
    assert without == {"azure", "bedrock"}
    assert without < set(BASE_URL_FORMS)


def test_a_vendor_of_a_kinds_own_name_is_where_that_kind_is_by_default() -> None:
    for name, preset in PRESETS.items():
        if name in KINDS and preset.kind == name:
            assert preset.base_url == KINDS[name].default_base_url


def test_the_placeholder_is_a_key_that_is_never_looked_for() -> None:
    assert len(PLACEHOLDER_KEY) < MASKED_KEY_BYTES_MIN
    for kind in KINDS.values():
        assert kind.credential_header(PLACEHOLDER_KEY.encode())


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recordings of vendors here")
@pytest.mark.parametrize("name", [name for name, one in PRESETS.items() if one.usage_unasked])
def test_who_is_said_to_report_unasked_did_so_in_every_recorded_stream(name: str) -> None:
    streams = 0
    for line in (RECORDINGS / f"{name}.chat.jsonl").read_text().splitlines():
        exchange = json.loads(line)
        body = request_of(exchange)
        if exchange["stream"] and not exchange["expected"].get("in_stream_error"):
            asked = (body.get("stream_options") or {}).get("include_usage")
            streams += not asked
            assert asked or exchange["expected"]["usage_reported"], exchange["id"]
    assert streams >= 2


def request_of(exchange: dict[str, Any]) -> dict[str, Any]:
    request = exchange["request"]
    body = request.get("body") or base64.b64decode(request.get("body_base64") or "e30=")
    document: dict[str, Any] = json.loads(body)
    return document
