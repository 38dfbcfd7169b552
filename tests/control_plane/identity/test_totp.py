import re

import pyotp
import pytest

from control_plane.identity.totp import (
    find_step,
    make_recovery_codes,
    provisioning_url,
    recovery_digest,
    seed_text,
)

SEED = b"12345678901234567890"  # of RFC 6238, appendix B

# The RFC's codes have eight digits; ours are the last six of them.
VECTORS = [
    (59, "94287082"),
    (1_111_111_109, "07081804"),
    (1_111_111_111, "14050471"),
    (1_234_567_890, "89005924"),
    (2_000_000_000, "69279037"),
    (20_000_000_000, "65353130"),
]


@pytest.mark.parametrize(("moment", "code"), VECTORS)
def test_codes_are_those_of_rfc_6238(moment: int, code: str) -> None:
    assert find_step(SEED, code[2:], unix_seconds=moment) == moment // 30


@pytest.mark.parametrize(("off", "is_taken"), [(-2, 0), (-1, 1), (0, 1), (1, 1), (2, 0)])
def test_a_clock_may_be_one_step_off(off: int, is_taken: int) -> None:
    now = 1_790_000_015
    code = pyotp.TOTP(seed_text(SEED)).at(now + off * 30)
    assert find_step(SEED, code, unix_seconds=now) == (now // 30 + off if is_taken else None)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "28708",
        "9428708",
        "287082 ",
        "28708\u0662",
        "٢٨٧٠٨٢",
        "\uff12\uff18\uff17\uff10\uff18\uff12",
        "-87082",
        "28708\n",
    ],
)
def test_what_is_no_code_is_none(code: str) -> None:
    assert find_step(SEED, code, unix_seconds=59) is None


def test_an_app_reads_the_seed_and_makes_the_same_codes() -> None:
    url = provisioning_url(SEED, account="ada+x@example.com")
    app = pyotp.parse_uri(url)
    assert isinstance(app, pyotp.TOTP)
    assert (app.name, app.issuer) == ("ada+x@example.com", "kAIxU")
    assert app.at(59) == "287082"


def test_recovery_codes_are_taken_however_they_are_typed() -> None:
    codes = make_recovery_codes(lambda count: bytes(range(count)))
    assert len(codes) == 10
    assert re.fullmatch(r"(?:[A-Z2-7]{4}-){3}[A-Z2-7]{4}", codes[0])
    digest = recovery_digest(codes[0])
    assert digest is not None
    assert recovery_digest(codes[0].lower().replace("-", " ")) == digest
    for other in ("", "287082", codes[0][:-1], codes[0] + "A", "é" * 16, "0" * 16):
        assert recovery_digest(other) is None
