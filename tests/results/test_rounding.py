"""Digits that the spread justifies, and true minus signs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.results.rounding import (
    MINUS,
    count_decimals,
    format_difference,
    format_interval,
    format_mean,
    format_number,
    format_p,
)
from orchestrator.results.summary import Statistic


@pytest.mark.parametrize(
    ("std", "decimals"),
    [(None, 2), (0.0, 2), (2.66, 1), (0.996, 1), (0.0153, 3), (9.96, 0), (12.0, 0), (123.0, 0), (1e-14, 4)],
)
def test_a_deviation_has_two_significant_digits(std: float | None, decimals: int) -> None:
    assert count_decimals(std) == decimals


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (79.6021, 2.66, "79.6 ± 2.7"),
        (92.513, 0.0208, "92.513 ± 0.021"),
        (45.2, 12.3, "45 ± 12"),
        (92.5, None, "92.50"),
        (92.5, 0.0, "92.50 ± 0.00"),
        (-3.25, 1.0, f"{MINUS}3.2 ± 1.0"),
    ],
)
def test_a_mean_has_the_decimals_of_its_deviation(mean: float, std: float | None, text: str) -> None:
    assert format_mean(Statistic(mean, std, 3)) == text


def test_differences_have_signs_and_an_interval() -> None:
    found = Statistic.over([-1.0, -2.0, -3.0])
    assert found
    assert format_difference(found) == "−2.0 [−4.5, +0.5]"  # ± t(2) / √3 = 4.303 / 1.732
    assert format_interval(found) == "[−4.5, 0.5]"
    assert format_difference(Statistic(0.5, None, 1)) == "+0.50" and format_interval(Statistic(0.5, None, 1)) == ""


def test_p_values_have_two_digits() -> None:
    values = (1.0, 0.0473, 0.00123, 0.0001, 0.00009, 0.0, None)
    assert [format_p(p) for p in values] == ["1", "0.047", "0.0012", "0.0001", "< 0.0001", "< 0.0001", ""]


def test_zero_has_no_sign() -> None:
    assert format_number(-0.001, 2) == format_number(0.0, 2, is_signed=True) == "0.00"


@given(st.floats(-100, 100), st.floats(1e-3, 50))
def test_rounding_loses_less_than_the_second_digit_of_the_deviation(mean: float, std: float) -> None:
    text = format_mean(Statistic(mean, std, 5)).replace(MINUS, "-")
    shown, spread = (float(part) for part in text.split(" ± "))
    step = 10 ** -count_decimals(std)
    assert abs(shown - mean) <= step / 2 * (1 + 1e-9) and math.isclose(spread, std, abs_tol=step / 2 * (1 + 1e-9))
