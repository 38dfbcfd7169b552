import time

import pytest

from control_plane.errors import BadArgument
from control_plane.identity.email_address import parse_email


@pytest.mark.parametrize(
    "text",
    [
        "a@b",
        "Ada.Lovelace+x@Example.COM",
        "o'neil@example.co.uk",
        "x@localhost",
        "_@xn--bcher-kva.ch",
    ],
)
def test_an_address_keeps_its_spelling_and_is_found_by_its_key(text: str) -> None:
    email = parse_email(text)
    assert (email.text, email.key) == (text, text.lower())


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "a@", "@b", "a b@c", "a@b c", "a@-b", "a@b..c", "a@.b", ".a@b", "a@b@c", "ä@b",
        "a@bücher.ch", "a\0@b", "a@b\n", "a@b\r\nBcc: c@d", "=?utf-8?q?a=2c_c=40d=3e?=@b",
        "a,b@c", "<a@b>", '"a b"@c', "a@[::1]",
        "\u0131@b", "a" * 65 + "@b", "a@" + "b" * 64 + ".c", "a@" + "b." * 140 + "c",
    ],
)  # fmt: skip
def test_what_we_do_not_write_to_is_refused(text: str) -> None:
    with pytest.raises(BadArgument):
        parse_email(text)


def test_no_text_is_pondered_for_long() -> None:
    began = time.perf_counter()
    for text in ("a" * 100_000, "a@" + "a-" * 50_000, "a." * 120, "a@" + "a." * 120 + "-"):
        with pytest.raises(BadArgument):
            parse_email(text)
    assert time.perf_counter() - began < 0.01
