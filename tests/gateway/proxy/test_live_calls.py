"""Open calls, found by whom they belong to and cut."""

import pytest

from gateway.auth.caller import Caller
from gateway.errors import Draining, GatewayError, TokenRevoked, TooManyOpenCalls
from gateway.proxy import live_calls
from gateway.proxy.live_calls import LiveCalls


def caller(
    token_id: str = "token",
    *,
    parent_id: str | None = None,
    user_id: str = "user",
    workspace_id: str = "workspace",
    org_id: str = "org",
) -> Caller:
    return Caller(
        token_id=token_id,
        parent_id=parent_id,
        org_id=org_id,
        workspace_id=workspace_id,
        user_id=user_id,
        scopes=frozenset({"calls"}),
        models=None,
        expires_at=0.0,
        limits=(),
    )


class Call:
    """A call that leaves when it is cut, as real ones do."""

    def __init__(self, calls: LiveCalls, caller: Caller, *, fails: bool = False) -> None:
        self.caller = caller
        self.errors: list[GatewayError] = []
        self._calls = calls
        self._fails = fails
        calls.register(self)

    def cut(self, error: GatewayError) -> None:
        self.errors.append(error)
        self._calls.unregister(self)
        if self._fails:
            raise RuntimeError("the transport is gone")


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
def calls(failures: list[Exception]) -> LiveCalls:
    return LiveCalls(on_cut_failed=failures.append)


@pytest.mark.parametrize(
    ("kind", "subject_id", "cut"),
    [
        ("token", "a", {"a", "child of a"}),
        ("token", "child of a", {"child of a"}),
        ("user", "u1", {"a", "child of a"}),
        ("workspace", "w1", {"a", "b"}),
        ("org", "o1", {"a", "b", "child of a"}),
        ("org", "o2", {"c"}),
        ("org", "a", set()),
        ("token", "nobody", set()),
    ],
)
def test_a_subject_s_open_calls_are_cut_and_no_others(
    calls: LiveCalls, kind: str, subject_id: str, cut: set[str]
) -> None:
    callers = [
        caller("a", user_id="u1", workspace_id="w1", org_id="o1"),
        caller("b", user_id="u2", workspace_id="w1", org_id="o1"),
        caller("child of a", parent_id="a", user_id="u1", workspace_id="w2", org_id="o1"),
        caller("c", user_id="u3", workspace_id="w3", org_id="o2"),
    ]
    opened = [Call(calls, one) for one in callers for _ in range(3)]
    assert calls.count == 12
    assert calls.cut(kind, subject_id) == 3 * len(cut)
    assert {call.caller.token_id for call in opened if call.errors} == cut
    assert all(isinstance(call.errors[0], TokenRevoked) for call in opened if call.errors)
    assert calls.count == 12 - 3 * len(cut)
    assert set(calls.token_ids()) == {one.token_id for one in callers} - cut
    assert calls.cut(kind, subject_id) == 0


def test_a_call_that_can_not_be_cut_does_not_spare_the_others(
    calls: LiveCalls, failures: list[Exception]
) -> None:
    opened = [Call(calls, caller(), fails=number == 1) for number in range(3)]
    assert calls.cut("token", "token", Draining) == 2
    assert [type(call.errors[0]) for call in opened] == [Draining] * 3
    assert [str(error) for error in failures] == ["the transport is gone"]


def test_each_call_ends_with_an_error_of_its_own(calls: LiveCalls) -> None:
    first, second = Call(calls, caller()), Call(calls, caller())
    assert calls.cut_all(Draining) == 2
    assert first.errors[0] is not second.errors[0]
    assert list(calls) == []


def test_a_call_that_has_ended_is_not_cut_and_ends_once(calls: LiveCalls) -> None:
    call = Call(calls, caller())
    calls.unregister(call)
    calls.unregister(call)
    assert calls.count == 0
    assert calls.token_ids() == []
    assert calls.cut("token", "token") == 0
    assert call.errors == []


def test_a_token_that_was_looked_up_again_is_found_under_its_old_and_new_user(
    calls: LiveCalls,
) -> None:
    old, new = Call(calls, caller(user_id="old")), Call(calls, caller(user_id="new"))
    assert calls.cut("user", "old") == 1
    assert new.errors == []
    assert calls.cut("user", "new") == 1
    assert len(old.errors) == len(new.errors) == 1


def test_tokens_without_an_open_call_do_not_pile_up(
    calls: LiveCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_calls, "GROUPS_MANY", 50)
    opened = [Call(calls, caller(f"open {number}")) for number in range(70)]
    for number in range(500):
        calls.unregister(Call(calls, caller(f"token {number}", user_id=f"user {number}")))
    assert len(calls._groups) <= 2 * len(opened)
    assert len(calls._index) <= 2 * len(calls._groups) + 2
    assert set(calls) == set(opened)
    for call in opened[20:]:
        calls.unregister(call)
    for number in range(500):
        calls.unregister(Call(calls, caller(f"later {number}")))
    assert len(calls._groups) <= 50
    assert set(calls) == set(opened[:20])
    assert calls.cut("org", "org") == 20


def test_a_call_may_end_while_the_open_calls_are_gone_over(calls: LiveCalls) -> None:
    for _ in range(3):
        Call(calls, caller())
    for call in calls:
        calls.unregister(call)
    assert calls.count == 0


def test_one_org_has_no_more_calls_open_than_it_may() -> None:
    calls = LiveCalls(on_cut_failed=lambda _: None, calls_per_org_max=2)
    first = Call(calls, caller())
    Call(calls, caller("other token"))
    with pytest.raises(TooManyOpenCalls) as refused:
        Call(calls, caller())
    assert refused.value.headers["x-kaixu-limit"] == "2"
    Call(calls, caller(org_id="other org"))
    calls.unregister(first)
    calls.unregister(first)
    Call(calls, caller())
    with pytest.raises(TooManyOpenCalls):
        Call(calls, caller("third token"))
    assert calls.count == 3


def test_a_call_that_was_not_taken_in_gives_nothing_back() -> None:
    calls = LiveCalls(on_cut_failed=lambda _: None, calls_per_org_max=1)
    held = Call(calls, caller())
    refused = Call.__new__(Call)
    refused.caller = held.caller
    with pytest.raises(TooManyOpenCalls):
        calls.register(refused)
    calls.unregister(refused)
    with pytest.raises(TooManyOpenCalls):
        calls.register(refused)
