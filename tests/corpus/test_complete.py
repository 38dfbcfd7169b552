"""No number is without a case, or a reason why it is tried elsewhere."""

from collections import Counter

from tests.corpus import (
    test_a_reading,
    test_b_sessions,
    test_c_sign_in,
    test_d_control_plane,
    test_d_tokens,
    test_g_tenants,
    test_h_rates,
    test_i_configuration,
    test_i_destinations,
    test_k_wear,
)
from tests.corpus.attacks import ELSEWHERE, TITLES


def test_every_number_has_one_case_or_a_reason() -> None:
    modules = (
        test_a_reading,
        test_b_sessions,
        test_c_sign_in,
        test_d_control_plane,
        test_d_tokens,
        test_g_tenants,
        test_h_rates,
        test_i_configuration,
        test_i_destinations,
        test_k_wear,
    )
    tried = [case.number for module in modules for case in getattr(module, "CASES", ())]
    tried += [number for module in modules for number in getattr(module, "ALONE", ())]
    assert Counter([*tried, *ELSEWHERE]) == Counter(list(TITLES))


def test_the_table_is_that_of_the_groups() -> None:
    assert set(TITLES) == {*range(1, 50), *range(73, 90), *range(100, 113)}
