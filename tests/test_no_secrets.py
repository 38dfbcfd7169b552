"""No secret is in the project, nor was in any commit of it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
SECONDS_MAX: Final = 120.0

# As their issuers write them, with what scanners look for.
PATTERNS: Final = {
    "Anthropic": rb"sk-ant-(?:api|admin)\d\d-[\w-]{80,}",
    "OpenAI": rb"sk-(?:proj|svcacct|admin)-[\w-]{60,}|sk-\w{20}T3BlbkFJ\w{20}",
    "Google": rb"AIza[\w-]{35}",
    "Google OAuth": rb"ya29\.[\w-]{60,}",
    "AWS": rb"(?:AKIA|ASIA)[0-9A-Z]{16}",
    "Groq": rb"gsk_\w{52}",
    "xAI": rb"xai-\w{80}",
    "Hugging Face": rb"hf_[A-Za-z]{34}",
    "GitHub": rb"gh[pousr]_\w{36}|github_pat_\w{82}",
    "Slack": rb"xox[abprs]-[\w-]{20,}",
    "Stripe": rb"(?:sk|rk)_live_\w{24,}|whsec_\w{32,}",
    "private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[\w+/=]{40,}",
}
FIND: Final = re.compile(b"|".join(b"(?:%s)" % pattern for pattern in PATTERNS.values()))
# AWS's own examples, in its documentation and its tests of signatures.
EXAMPLES: Final = frozenset({b"AKIAIOSFODNN7EXAMPLE", b"AKIDEXAMPLE"})


def secrets_in(content: bytes) -> set[bytes]:
    """Return what looks like a secret, and is nobody's example."""
    return {found for found in FIND.findall(content) if found not in EXAMPLES}


def git(*arguments: str) -> bytes:
    """Return what git prints about the project."""
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, check=True, timeout=SECONDS_MAX
    ).stdout


def added_lines() -> Iterator[bytes]:
    """Yield all that any commit has added."""
    log = git("log", "--all", "--patch", "--unified=0", "--no-color", "--no-ext-diff", "--text")
    yield b"\n".join(line[1:] for line in log.splitlines() if line.startswith(b"+"))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone: there is no history")
def test_no_commit_has_a_secret() -> None:
    for content in added_lines():
        assert len(content) > 1_000_000, "this is not all of it"
        assert secrets_in(content) == set()


def test_the_search_finds_what_issuers_give_out() -> None:
    made = {
        "Anthropic": b"sk-ant-api03-" + b"x" * 93 + b"AA",
        "OpenAI": b"sk-proj-" + b"x" * 120,
        "Google": b"AIza" + b"x" * 35,
        "AWS": b"AKIA" + b"X" * 16,
        "GitHub": b"ghp_" + b"x" * 36,
        "Stripe": b"sk_live_" + b"x" * 24,
        "private key": b"-----BEGIN PRIVATE KEY-----\n" + b"x" * 64,
    }
    for issuer, secret in made.items():
        assert secrets_in(b'key = "' + secret + b'"') == {secret}, issuer
    assert secrets_in(b"AKIAIOSFODNN7EXAMPLE") == set()
