"""The token format: what is one, what is not, and what is kept of it."""

import hashlib
import zlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.auth import token

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

kinds = st.sampled_from(sorted(token.KINDS))
tokens = st.builds(
    lambda kind, random: token.generate(kind, lambda _: random),
    kinds,
    st.binary(min_size=40, max_size=40),
)


def base62(number: int) -> str:
    text = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        text = DIGITS[digit] + text
    assert number == 0
    return text


@given(tokens)
def test_a_token_made_here_is_well_formed(text: str) -> None:
    assert len(text) == token.TOKEN_CHARS
    assert token.is_well_formed(text.encode())


@given(tokens)
def test_the_checksum_is_the_crc_in_base_62_of_all_before(text: str) -> None:
    assert text[36:] == base62(zlib.crc32(text[:36].encode()))


@given(tokens, st.integers(0, token.TOKEN_CHARS - 1), st.sampled_from(DIGITS))
def test_one_wrong_character_is_noticed(text: str, at: int, digit: str) -> None:
    assume(text[at] != digit)
    assert not token.is_well_formed((text[:at] + digit + text[at + 1 :]).encode())


@given(tokens, st.integers(0, token.TOKEN_CHARS - 2))
def test_two_swapped_characters_are_noticed(text: str, at: int) -> None:
    assume(text[at] != text[at + 1])
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    assert not token.is_well_formed(swapped.encode())


@given(tokens, st.integers(0, token.TOKEN_CHARS - 1))
def test_a_token_copied_in_part_is_none(text: str, length: int) -> None:
    assert not token.is_well_formed(text[:length].encode())


@given(st.binary(max_size=64))
def test_junk_is_no_token_and_raises_nothing(junk: bytes) -> None:
    assert not token.is_well_formed(junk)


@pytest.mark.parametrize("around", ["{}\n", "{}=", " {}", "{} ", '"{}"', "{}\x00", "{}\r\n"])
def test_nothing_may_stand_around_a_token(around: str) -> None:
    assert not token.is_well_formed(around.format(token.generate()).encode())


def test_a_digest_an_upper_case_and_a_percent_encoded_token_are_none() -> None:
    text = token.generate()
    assert not token.is_well_formed(hashlib.sha256(text.encode()).hexdigest().encode())
    assert not token.is_well_formed(text.upper().encode())
    assert not token.is_well_formed(text.replace("_", "%5F").encode())


def test_an_unknown_kind_is_no_token_even_with_its_checksum() -> None:
    checked = "kxz_" + "0" * 32
    assert not token.is_well_formed((checked + base62(zlib.crc32(checked.encode()))).encode())


def test_tokens_are_random() -> None:
    assert len({token.generate() for _ in range(1000)}) == 1000


@given(tokens)
def test_the_digest_is_of_the_whole_text_however_it_is_given(text: str) -> None:
    assert token.digest(text) == token.digest(text.encode())
    assert token.digest(text) == hashlib.sha256(text.encode()).digest()


@given(tokens)
def test_a_hint_shows_kind_and_last_four(text: str) -> None:
    assert token.hint(text) == f"{text[:4]}…{text[-4:]}"
