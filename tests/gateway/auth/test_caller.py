"""What a caller may do, and whose change changes it."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.caller import Caller


def make_caller(**changes: Any) -> Caller:
    values: dict[str, Any] = {
        "token_id": "t",
        "parent_id": None,
        "org_id": "o",
        "workspace_id": "w",
        "user_id": "u",
        "scopes": frozenset({"calls"}),
        "models": None,
        "expires_at": 1.0,
        "limits": (),
    }
    return Caller(**values | changes)


def test_a_token_without_a_model_list_may_use_any_model() -> None:
    assert make_caller().may_use("anything/at:all")


@pytest.mark.parametrize(
    ("globs", "model", "may"),
    [
        (("gpt-4o",), "gpt-4o", True),
        (("gpt-4o",), "gpt-4o-mini", False),
        (("gpt-4o",), "GPT-4o", False),
        (("gpt-4o",), "gpt-4o ", False),
        (("gpt-4o",), "gpt-4o\n", False),
        (("gpt-4o",), "xgpt-4o", False),
        (("gpt-*", "claude-*"), "claude-opus", True),
        (("gpt-*", "claude-*"), "gemini", False),
        (("claude-x[1m]",), "claude-x[1m]", True),
        (("a.c",), "abc", False),
        (("",), "", True),
        ((), "gpt-4o", False),
        ((), "", False),
    ],
)
def test_a_model_list_is_of_names_and_globs(
    globs: tuple[str, ...],
    model: str,
    may: bool,  # noqa: FBT001
) -> None:
    assert make_caller(models=globs).may_use(model) is may


@given(st.lists(st.text(alphabet="ab*?[]!-^|\\&~.", max_size=6), max_size=4), st.text(max_size=6))
def test_no_model_list_is_too_odd_to_read(globs: list[str], model: str) -> None:
    caller = make_caller(models=tuple(globs))
    caller.may_use(model)
    assert all(caller.may_use(name) for name in globs)


def test_globs_made_to_be_slow_are_not() -> None:
    assert not make_caller(models=("*a" * 40 + "b",)).may_use("a" * 2000)


def test_a_child_may_use_what_its_parent_may_too() -> None:
    child = make_caller(parent_id="p", models=("gpt-*",), parent_models=("*-mini",))
    assert child.may_use("gpt-4o-mini")
    assert not child.may_use("gpt-4o")
    assert not child.may_use("o4-mini")


def test_only_the_scope_for_calls_lets_it_call() -> None:
    assert make_caller().may_call
    assert not make_caller(scopes=frozenset({"usage:read"})).may_call
    assert not make_caller(scopes=frozenset()).may_call


def test_its_subjects_are_itself_its_parent_and_whom_it_belongs_to() -> None:
    own = {("token", "t"), ("user", "u"), ("workspace", "w"), ("org", "o")}
    assert set(make_caller().subjects) == own
    assert set(make_caller(parent_id="p").subjects) == own | {("token", "p")}


def test_a_caller_is_a_value() -> None:
    assert make_caller(models=("a",)) == make_caller(models=("a",))
    assert hash(make_caller()) == hash(make_caller())
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_caller().token_id = "x"  # type: ignore[misc]
