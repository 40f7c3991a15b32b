"""Tails beside scipy's, and their limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaincc

from medley.planning.tails import gamma_tail, upper_gamma


@given(st.floats(0.01, 1e5), st.floats(1e-6, 1e5))
def test_the_incomplete_gamma_function_is_scipys(shape, x):
    assert upper_gamma(shape, x) == pytest.approx(gammaincc(shape, x), abs=2e-5)


@given(st.floats(0.1, 100), st.floats(0.01, 100), st.floats(0, 300), st.floats(0, 300))
def test_a_tail_falls(mean, variance, one, other):
    low, high = sorted((one, other))
    assert 0 <= gamma_tail(mean, variance, high) <= gamma_tail(mean, variance, low) + 1e-9 <= 1 + 1e-9


@pytest.mark.parametrize(
    ("mean", "variance", "above", "expected"),
    [(2.0, 0.0, 1.0, 1.0), (2.0, 0.0, 3.0, 0.0), (0.0, 1.0, 1.0, 0.0), (5.0, 1.0, -1.0, 1.0), (3.0, 2.0, 0.0, 1.0)],
    ids=["constant above", "constant below", "nothing", "negative bound", "at zero"],
)
def test_the_limits_are_what_they_must_be(mean, variance, above, expected):
    assert gamma_tail(mean, variance, above) == expected
