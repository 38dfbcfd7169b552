"""Sealing a vendor key: its key texts, and what the sealed bytes are tied to."""

import itertools
import secrets

import pytest

from gateway.vendors import seal
from gateway.vendors.seal import KeyTextInvalid

INFO = seal.info("018f", "org", "openai", "https://api.openai.com:443", 1)


def test_a_new_key_pair_is_two_texts_of_which_one_is_never_shown() -> None:
    pair = seal.keygen()
    assert pair.private.startswith("kxvault1_")
    assert pair.public.startswith("kxseal1_")
    assert seal.public_of(pair.private) == pair.public
    assert pair.private not in repr(pair)
    assert seal.keygen() != pair


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("kxvault1_", id="only the prefix"),
        pytest.param("kxvault1_" + "A" * 42, id="short"),
        pytest.param("kxvault1_" + "A" * 44, id="long"),
        pytest.param("kxvault1_" + "A" * 42 + "B", id="a second text for one key"),
        pytest.param("kxvault1_" + "A" * 42 + "+", id="another alphabet"),
        pytest.param("kxvault1_" + "A" * 43 + "\n", id="a line end"),
        pytest.param("kxvault1_" + "A" * 42 + "\u00e4", id="beyond ASCII"),
        pytest.param("kxvault1_" + "A" * 43 + "=", id="padding"),
        pytest.param("kxseal1_" + "A" * 43, id="the other kind"),
        pytest.param("KXVAULT1_" + "A" * 43, id="upper case"),
    ],
)
def test_a_text_that_is_no_private_key_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(KeyTextInvalid) as caught:
        seal.parse_private(text)
    assert not text or text == "kxvault1_" or text not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_private_key_can_not_stand_where_a_public_one_belongs() -> None:
    with pytest.raises(KeyTextInvalid):
        seal.seal(seal.keygen().private, INFO, b"sk-1")


def test_sealing_twice_gives_different_bytes_that_begin_with_the_same_key_id() -> None:
    public = seal.keygen().public
    first, second = seal.seal(public, INFO, b"sk-1"), seal.seal(public, INFO, b"sk-1")
    assert first != second
    header = seal.FORMAT + seal.key_id(seal.parse_public(public))
    assert first.startswith(header)
    assert second.startswith(header)
    assert b"sk-1" not in first


@pytest.mark.parametrize("plaintext", [b"", b"x" * (seal.PLAINTEXT_BYTES_MAX + 1)])
def test_an_empty_or_endless_key_is_not_sealed(plaintext: bytes) -> None:
    with pytest.raises(ValueError, match="1 to 16384 bytes"):
        seal.seal(seal.keygen().public, INFO, plaintext)


def test_different_facts_never_give_the_same_info() -> None:
    texts = ["", "a", "b", "aa", "ab", "\x00", "\x00\x00\x00\x01a", "a\x00\x00\x00\x01"]
    facts = list(itertools.product(texts, [None, *texts], texts, texts, [1, 2]))
    assert len({seal.info(*fact) for fact in facts}) == len(facts)


def test_a_key_of_the_greatest_size_is_sealed() -> None:
    plaintext = secrets.token_bytes(seal.PLAINTEXT_BYTES_MAX)
    assert len(seal.seal(seal.keygen().public, INFO, plaintext)) < len(plaintext) + 100
