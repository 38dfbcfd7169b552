"""Whether a subject changed since a look at the database."""

from gateway.auth.recent_changes import Change, RecentChanges


def change(ordinal: int, subject_id: str, kind: str = "token") -> Change:
    return Change(ordinal=ordinal, kind=kind, subject_id=subject_id, effect="changed")


def test_a_subject_was_touched_only_by_changes_after_the_look() -> None:
    recent = RecentChanges()
    recent.start_at(10)
    recent.add([change(11, "a"), change(12, "b"), change(13, "a", kind="user")])
    assert recent.touched_since(10, [("token", "a")]) is True
    assert recent.touched_since(11, [("token", "a")]) is False
    assert recent.touched_since(11, [("token", "x"), ("token", "b")]) is True
    assert recent.touched_since(12, [("user", "a")]) is True
    assert recent.touched_since(99, [("user", "a")]) is False


def test_a_look_from_before_the_memory_is_out_of_reach_unless_a_known_change_touched_it() -> None:
    recent = RecentChanges()
    recent.start_at(10)
    recent.add([change(11, "a")])
    assert recent.touched_since(9, [("token", "b")]) is None
    assert recent.touched_since(9, [("token", "a")]) is True
    recent.start_at(3)
    assert recent.touched_since(2, [("token", "a")]) is None
    assert recent.touched_since(3, [("token", "a")]) is False


def test_the_oldest_changes_are_forgotten_and_then_out_of_reach() -> None:
    recent = RecentChanges(kept_max=2)
    recent.add([change(1, "a"), change(2, "b"), change(3, "c"), change(4, "b")])
    assert recent.touched_since(1, [("token", "a")]) is None
    assert recent.touched_since(2, [("token", "a")]) is False
    assert recent.touched_since(1, [("token", "b")]) is True
    assert recent.touched_since(2, [("token", "b")]) is True
    assert len(recent._newest) == 2
