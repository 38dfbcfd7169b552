from collections.abc import Mapping

import pytest

from gateway.connect_guard import BaseUrl
from gateway.errors import NoRoute, VendorKeyRefused
from gateway.proxy.routing import (
    RoutingTable,
    Target,
    find_ambiguities,
    is_exact,
    model_problem,
    specificity,
)
from gateway.vendors.registry import KINDS

KEY = b"sk-canary-0123456789"


def target(
    name: str,
    kind: str = "openai",
    *,
    models: tuple[str, ...] | None = None,
    is_default: bool = False,
    problem: str | None = None,
    base: str = "api.example.com",
) -> Target:
    return Target(
        vendor_id="id-" + name,
        name=name,
        kind=KINDS[kind],
        base=BaseUrl(scheme="https", host=base, port=443, path=""),
        is_private=False,
        is_default=is_default,
        models=models,
        asks_usage=True,
        account_headers=False,
        is_simulator=False,
        credential=(b"authorization", b"Bearer " + KEY),
        key=KEY,
        problem=problem,
    )


def where(
    targets: list[Target],
    model: str | None,
    *,
    wire: str = "openai",
    vendor: str | None = None,
    aliases: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[str, str | None, str | None]:
    route = RoutingTable(targets, aliases).route(wire_name=wire, vendor=vendor, model=model)
    assert len(route.targets) == 1
    return route.targets[0].name, route.model, route.alias


def test_the_first_vendor_of_a_format_is_its_default_until_another_is_marked() -> None:
    assert where([target("a"), target("b")], "m") == ("a", "m", None)
    assert where([target("a"), target("b", is_default=True)], "m") == ("b", "m", None)
    assert where([target("c", "anthropic"), target("a")], None) == ("a", None, None)


def test_a_named_vendor_beats_alias_and_pattern() -> None:
    targets = [target("a"), target("b", models=("m",)), target("c")]
    route = where(targets, "m", vendor="c", aliases={"m": ("a", "other")})
    assert route == ("c", "m", None)


def test_an_alias_beats_a_pattern_and_names_the_vendors_model() -> None:
    targets = [target("a"), target("b", models=("fast",)), target("c")]
    assert where(targets, "fast", aliases={"fast": ("c", "m-1")}) == ("c", "m-1", "fast")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-5", "exact"),
        ("gpt-5-mini", "longer"),
        ("gpt-4", "shorter"),
        ("gpt-4-mini", "ending"),
        ("GPT-5", "default"),
        ("other", "default"),
    ],
)
def test_the_most_specific_pattern_decides(model: str, name: str) -> None:
    targets = [
        target("default"),
        target("shorter", models=("gpt-*",)),
        target("longer", models=("gpt-5*",)),
        target("exact", models=("zzz", "gpt-5")),
        target("ending", models=("gpt-*-mini",)),
    ]
    assert where(targets, model)[0] == name
    assert where([targets[0], *reversed(targets[1:])], model)[0] == name


def test_of_two_equal_patterns_the_first_added_wins() -> None:
    targets = [target("a"), target("b", models=("m*",)), target("c", models=("m*",))]
    assert where(targets, "m1")[0] == "b"


def test_a_name_with_brackets_is_also_itself() -> None:
    targets = [target("a"), target("b", models=("m[1]",))]
    assert where(targets, "m[1]")[0] == "b"
    assert where(targets, "m1")[0] == "b"
    assert where(targets, "m2")[0] == "a"


def test_nothing_leads_to_another_wire_format() -> None:
    targets = [target("a"), target("c", "anthropic", models=("claude-*", "*", "opus"))]
    aliases = {"best": ("c", "claude-1"), "gone": ("x", "m")}
    table = RoutingTable(targets, aliases)
    for vendor, model, message in [
        ("c", "m", "another wire format"),
        (None, "best", "another wire format"),
        (None, "gone", "no longer has"),
        ("x", "m", "no vendor of this name"),
    ]:
        with pytest.raises(NoRoute, match=message):
            table.route(wire_name="openai", vendor=vendor, model=model)
    for model in ("m", "opus"):  # another format's pattern takes nothing from the default
        assert table.route(wire_name="openai", vendor=None, model=model).targets[0].name == "a"
    with pytest.raises(NoRoute, match="another wire format"):
        RoutingTable(targets[1:]).route(wire_name="openai", vendor=None, model="opus")
    with pytest.raises(NoRoute, match="no vendor for this wire format"):
        table.route(wire_name="gemini", vendor=None, model="m")


def test_a_vendor_whose_key_cannot_be_opened_is_a_refusal_about_the_key() -> None:
    with pytest.raises(VendorKeyRefused):
        where([target("a", problem="sealed to an unknown key")], "m")


def test_a_format_has_the_aliases_that_lead_to_its_vendors() -> None:
    aliases = {"b": ("a", "m"), "a": ("a", "m"), "c": ("c", "m"), "d": ("gone", "m")}
    table = RoutingTable([target("a"), target("c", "gemini")], aliases)
    assert table.models_for("openai") == ("a", "b")
    assert table.models_for("gemini") == ("c",)
    assert table.models_for("anthropic") == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("m", "m"),
        ("m*", "m*"),
        ("a*b*", "a*b*"),
        ("a*b", "a*b"),
        ("gpt-*x*", "gpt-*y*"),
        ("m?", "m*"),
        ("m[12]", "m?"),
    ],
)
def test_equally_specific_patterns_of_two_vendors_are_ambiguous(one: str, other: str) -> None:
    first = target("first", models=("unlike", one))
    problems = find_ambiguities([first, target("second", models=(other,))])
    assert len(problems) == 1
    assert all(word in problems[0] for word in ("first", "second", one, other))


@pytest.mark.parametrize(
    ("one", "other"),
    [("m", "n"), ("m*", "mm*"), ("m", "m*"), ("a*b", "a*c"), ("a?b", "a?c"), ("a*", "b*")],
)
def test_patterns_that_differ_in_what_they_say_are_not_ambiguous(one: str, other: str) -> None:
    assert find_ambiguities([target("a", models=(one,)), target("b", models=(other,))]) == []


def test_patterns_of_one_vendor_or_of_two_formats_are_not_ambiguous() -> None:
    assert find_ambiguities([target("a", models=("m*", "m*")), target("b")]) == []
    same = [target("a", models=("m",)), target("b", "gemini", models=("m",))]
    assert find_ambiguities(same) == []


def test_specificity_orders_patterns() -> None:
    ordered = ["*", "*-mini", "m*", "m*-mini", "mo*", "mode?", "x"]
    assert sorted(ordered, key=specificity) == ordered
    assert [is_exact(pattern) for pattern in ordered] == [False] * 6 + [True]


@pytest.mark.parametrize("name", ["", " m", "m ", "m\n", "m\x00", "m\u2028", "m" * 257])
def test_a_bad_model_name_is_told_what_is_wrong(name: str) -> None:
    assert model_problem(name)


def test_a_good_model_name_has_no_problem() -> None:
    for name in ("gpt-5", "a b", "模型", "m" * 256):
        assert model_problem(name) is None


def test_no_secret_is_in_a_repr() -> None:
    table = RoutingTable([target("a")])
    route = table.route(wire_name="openai", vendor=None, model="m")
    for one in (route, route.targets[0], table):
        assert "canary" not in repr(one)


def test_an_orgs_own_go_before_the_operators_by_name_alias_pattern_and_default() -> None:
    base = RoutingTable(
        [target("openai", is_default=True, models=("gpt-*",)), target("groq", models=("llama-3",))],
        {"fast": ("groq", "llama-3"), "slow": ("openai", "gpt-5")},
    )
    own = target("openai"), target("mine", models=("llama-*", "qwen"))
    table = RoutingTable(own, {"fast": ("mine", "qwen")}, base=base)

    def to(model: str | None = None, vendor: str | None = None) -> Target:
        return table.route(wire_name="openai", vendor=vendor, model=model).targets[0]

    assert to(vendor="openai") is own[0]  # by name
    assert to("gpt-5") is own[0]  # the operator's pattern, of a vendor whose name is taken
    assert to("llama-3") is own[1]  # an own pattern, however little it says
    assert to("fast") is own[1]
    assert to("slow") is own[0]
    assert to(vendor="groq") is base.target("groq")
    assert to("unknown") is own[0]  # the operator's default, likewise
    assert [one.name for one in table.targets] == ["openai", "mine", "groq"]
    assert base.route(wire_name="openai", vendor=None, model="gpt-5").targets[0] is not own[0]


def test_an_own_vendor_is_a_default_where_it_says_so_or_there_is_none() -> None:
    base = RoutingTable([target("openai", is_default=True)])
    silent = RoutingTable([target("mine")], base=base)
    said = RoutingTable([target("mine", is_default=True)], base=base)
    alone = RoutingTable([target("mine")], base=RoutingTable(()))
    names = [
        one.route(wire_name="openai", vendor=None, model="x").targets[0].name
        for one in (silent, said, alone)
    ]
    assert names == ["openai", "mine", "mine"]


def test_a_model_of_the_operators_that_an_own_vendor_of_another_format_hides_is_nobodys() -> None:
    base = RoutingTable([target("openai", models=("gpt-*",)), target("groq", is_default=True)])
    table = RoutingTable([target("openai", kind="anthropic")], base=base)
    route = table.route(wire_name="openai", vendor=None, model="gpt-5")
    assert route.targets[0].name == "groq"


def test_no_vendor_of_the_operators_is_called_in_the_place_of_a_disabled_own_one() -> None:
    base = RoutingTable(
        [target("openai", is_default=True, models=("gpt-*",)), target("groq", models=("llama-*",))],
        {"fast": ("openai", "gpt-5")},
    )
    table = RoutingTable((), base=base, disabled={"openai"})
    for model, vendor in (("gpt-5", "openai"), ("fast", None), ("gpt-5", None), (None, None)):
        with pytest.raises(NoRoute) as refused:
            table.route(wire_name="openai", vendor=vendor, model=model)
        if vendor is not None or model == "fast":
            assert "is disabled" in refused.value.message
    assert table.route(wire_name="openai", vendor=None, model="llama-3").targets[0].name == "groq"
    assert [one.name for one in table.targets] == ["groq"]
