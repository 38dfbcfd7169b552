"""A rig whose tokens are looked up by the real authenticator, from a table in memory."""

from dataclasses import dataclass, replace

from gateway.auth.authenticate import Authenticator
from gateway.auth.caller import Caller
from gateway.auth.token import digest, generate
from gateway.auth.token_store import Found
from gateway.clock import DatabaseClock
from tests.gateway.proxy.rig import Rig


@dataclass(kw_only=True)
class Tokens:
    """Two tokens of two orgs, and how often somebody had to be asked about one."""

    token: bytes
    other: bytes
    lookups: int = 0


def know_tokens(rig: Rig, **changes: object) -> Tokens:
    """Have a rig's calls authenticated for real; `changes` are the first caller's."""
    tokens = Tokens(token=generate().encode(), other=generate().encode())
    first: Caller = replace(rig.caller, **changes)  # type: ignore[arg-type]
    known = {
        digest(tokens.token): first,
        digest(tokens.other): replace(rig.caller, token_id="token-2", org_id="org-2"),
    }

    async def find(token_digest: bytes) -> Found:
        tokens.lookups += 1
        caller = known.get(token_digest)
        if caller is None:
            return Found(caller=None, why="unknown", head=0)
        return Found(caller=caller, why=None, subjects=caller.subjects, head=0)

    clock = DatabaseClock()
    now = clock.boottime()
    clock.observe(sent=now, received=now, database_time=1_790_000_000.0)
    rig.calls._authenticator = Authenticator(
        find=find, clock=clock, applied=lambda: 0, touched_since=lambda _, __: False
    )
    return tokens
