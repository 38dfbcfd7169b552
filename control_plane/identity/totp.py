"""Codes of authenticator apps (RFC 6238), and those that stand in for a lost app."""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Final

import pyotp

SEED_BYTES: Final = 20  # RFC 4226, 4: 160 bits
STEP_SECONDS: Final = 30
STEPS_OFF_MAX: Final = 1  # of the app's clock, either way
DIGITS: Final = 6
ISSUER: Final = "kAIxU"

RECOVERY_CODES: Final = 10
RECOVERY_BYTES: Final = 10  # 80 bits: nobody finds one by its digest

_CODE: Final = re.compile(r"[0-9]{6}", re.ASCII)
_RECOVERY: Final = re.compile(r"[A-Z2-7]{16}")


def provisioning_url(seed: bytes, *, account: str) -> str:
    """Return what an authenticator app reads, as a QR code mostly."""
    return _totp(seed).provisioning_uri(name=account, issuer_name=ISSUER)


def seed_text(seed: bytes) -> str:
    """Return a seed as a person types it into an app."""
    return base64.b32encode(seed).decode()


def find_step(seed: bytes, code: str, *, unix_seconds: float) -> int | None:
    """Return the step whose code it is, near a time; None: of no such step.

    The latest one, where two steps happen to have the same code.
    """
    if not _CODE.fullmatch(code):
        return None
    totp = _totp(seed)
    now = int(unix_seconds) // STEP_SECONDS
    found = None
    for step in range(max(now - STEPS_OFF_MAX, 0), now + STEPS_OFF_MAX + 1):
        if hmac.compare_digest(totp.generate_otp(step), code):
            found = step
    return found


def make_recovery_codes(random: Callable[[int], bytes]) -> list[str]:
    """Return new codes, in groups of four characters."""
    made = []
    for _ in range(RECOVERY_CODES):
        text = base64.b32encode(random(RECOVERY_BYTES)).decode()
        made.append("-".join(text[at : at + 4] for at in range(0, len(text), 4)))
    return made


def recovery_digest(code: str) -> bytes | None:
    """Return what the database keeps of a recovery code; None for what can't be one."""
    text = code.upper().replace("-", "").replace(" ", "")
    return hashlib.sha256(text.encode()).digest() if _RECOVERY.fullmatch(text) else None


def _totp(seed: bytes) -> pyotp.TOTP:
    return pyotp.TOTP(seed_text(seed), digits=DIGITS, interval=STEP_SECONDS)
