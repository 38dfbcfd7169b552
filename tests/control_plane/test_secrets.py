import base64
import os
from dataclasses import replace

import pytest

from control_plane.errors import BadArgument
from control_plane.secrets import (
    ControlKeys,
    Place,
    SealBroken,
    make_control_key,
    parse_control_keys,
)

PLACE = Place(table="accounts", column="totp_sealed", row_id="row", org_id="org")


@pytest.fixture
def keys() -> ControlKeys:
    return parse_control_keys(make_control_key())


def test_what_is_sealed_for_a_place_opens_there(keys: ControlKeys) -> None:
    sealed = keys.seal(b"secret", PLACE)
    assert keys.open(sealed, PLACE) == b"secret"
    assert b"secret" not in sealed
    assert keys.seal(b"secret", PLACE) != sealed, "the nonce is another one each time"


@pytest.mark.parametrize("field", ["table", "column", "row_id", "org_id"])
def test_it_opens_nowhere_else(keys: ControlKeys, field: str) -> None:
    sealed = keys.seal(b"secret", PLACE)
    with pytest.raises(SealBroken):
        keys.open(sealed, replace(PLACE, **{field: "other"}))


def test_it_does_not_open_with_any_bit_changed(keys: ControlKeys) -> None:
    sealed = keys.seal(b"secret", PLACE)
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            keys.open(bytes(changed), PLACE)
    for length in range(len(sealed)):
        with pytest.raises(SealBroken):
            keys.open(sealed[:length], PLACE)


def test_while_a_key_takes_over_both_open_and_the_new_one_seals() -> None:
    old, new = make_control_key(), make_control_key()
    before, both, after = map(parse_control_keys, (old, f"{new} {old}", new))
    sealed = before.seal(b"secret", PLACE)
    assert both.open(sealed, PLACE) == b"secret"
    assert not both.is_current(sealed)
    resealed = both.seal(b"secret", PLACE)
    assert both.is_current(resealed)
    assert after.open(resealed, PLACE) == b"secret"
    with pytest.raises(SealBroken):
        after.open(sealed, PLACE)


def test_each_use_has_a_key_of_its_own(keys: ControlKeys) -> None:
    pepper = keys.pepper(keys.current)
    assert pepper is not None
    assert pepper != keys.keys[keys.current]
    assert keys.pepper("00000000") is None


def test_a_key_is_taken_as_base64_and_as_hex() -> None:
    raw = os.urandom(32)
    forms = (raw.hex(), base64.b64encode(raw).decode(), base64.b64encode(raw).decode().rstrip("="))
    assert len({parse_control_keys(form).current for form in forms}) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "changeme",
        "A" * 44,
        "0" * 64,
        "00ff" * 16,
        base64.b64encode(bytes(range(31))).decode(),
        base64.b64encode(bytes(range(33))).decode(),
        f"{'a' * 64} {'b' * 64} {'c' * 64}",
        " ".join([base64.b64encode(bytes(range(32))).decode()] * 2),
    ],
)
def test_what_is_no_key_is_refused_and_never_quoted(text: str) -> None:
    with pytest.raises(BadArgument) as refused:
        parse_control_keys(text)
    assert refused.value.field == "KAIXU_CONTROL_KEY"
    assert not text or text not in refused.value.message


def test_no_key_is_in_a_repr(keys: ControlKeys) -> None:
    key = keys.keys[keys.current]
    assert key.hex() not in repr(keys)
    assert repr(key) not in repr(keys)
