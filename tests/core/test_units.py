"""Durations, percentages, money and memory: one canonical form each, and a message that names the field."""

from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core import units
from medley.core.errors import InvalidInputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("850us", timedelta(microseconds=850), id="microseconds"),
        pytest.param("40ms", timedelta(milliseconds=40), id="milliseconds"),
        pytest.param("2s", timedelta(seconds=2), id="seconds"),
        pytest.param("10m", timedelta(minutes=10), id="minutes"),
        pytest.param("1h", timedelta(hours=1), id="hours"),
    ],
)
def test_a_duration_reads_and_writes_as_itself(text, value):
    assert units.duration(text, field="spec.slo.tpot") == value
    assert units.format_duration(value) == text


@given(st.integers(min_value=1, max_value=10**12))
def test_every_duration_survives_writing_and_reading(microseconds):
    value = timedelta(microseconds=microseconds)
    assert units.duration(units.format_duration(value), field="f") == value


@pytest.mark.parametrize("text", ["", "40", "40 ms", "1m30s", "-2s", "0s", "1.5s", "2d", "2S"])
def test_other_durations_are_refused_with_the_field_and_the_remedy(text):
    with pytest.raises(InvalidInputError) as refused:
        units.duration(text, field="spec.slo.ttft")
    assert str(refused.value) == f"spec.slo.ttft: expected a duration such as 40ms, 2s, 10m or 1h, got {text!r}"


@pytest.mark.parametrize(("text", "value"), [("0%", 0.0), ("20%", 0.2), ("100%", 1.0)])
def test_percentages(text, value):
    assert units.percent(text, field="f") == value


@pytest.mark.parametrize("text", ["20", "101%", "-1%", "1.5%", "007%", "%"])
def test_other_percentages_are_refused(text):
    with pytest.raises(InvalidInputError, match="whole percentage"):
        units.percent(text, field="f")


@pytest.mark.parametrize(("text", "value"), [("0.36", Decimal("0.36")), ("40", Decimal(40)), ("0", Decimal(0))])
def test_money(text, value):
    assert units.usd(text, field="f") == value


@pytest.mark.parametrize("text", ["$4", "-1", "NaN", "1e3", "01", ".5", "1.", "Infinity", ""])
def test_other_money_is_refused(text):
    with pytest.raises(InvalidInputError, match="US dollars"):
        units.usd(text, field="f")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8000, "8,000"),
        (999.6, "1,000"),
        (999.4, "999"),
        (7.926, "7.93"),
        (1234567.8, "1,234,568"),
        (0.0318, "0.0318"),
        (0, "0"),
    ],
)
def test_figures_for_people(value, text):
    assert units.figure(value) == text


@pytest.mark.parametrize(("text", "value"), [("24Gi", 24 * 2**30), ("512Mi", 2**29), ("1Ti", 2**40)])
def test_memory(text, value):
    assert units.memory_bytes(text, field="f") == value


@pytest.mark.parametrize("text", ["24", "24GB", "0Gi", "1.5Gi", "-1Gi"])
def test_other_memory_is_refused(text):
    with pytest.raises(InvalidInputError, match="memory size"):
        units.memory_bytes(text, field="f")
