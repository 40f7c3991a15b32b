"""From a trace to a forecast: sizes, rates and burstiness, and that no order or offset of times matters."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.errors import InvalidInputError
from medley.core.service import Histogram
from medley.core.workload import SizeGrid
from medley.planning.arrivals import Arrival, RateChoice, traffic

GRID = SizeGrid((100, 1000), (100,))
MINUTE = timedelta(minutes=1)


def steady(count: int, every_s: float, start: float = 0.0) -> list[Arrival]:
    return [Arrival(start + number * every_s, 50, 50) for number in range(count)]


def test_a_steady_trace_has_one_rate_and_no_bursts():
    found = traffic(steady(121, 1.0), GRID, MINUTE)
    assert found.requests_per_second == tuple((choice, 1.0) for choice in RateChoice)
    assert (found.burstiness.gap_variation, found.burstiness.dispersion) == (0.0, 0.0)
    assert (found.duration, found.requests, found.rare, found.beyond) == (timedelta(minutes=2), 121, 0, 0)


def test_the_rates_are_of_windows():
    # Ten minutes: nine with 60 requests, one with 600.
    arrivals = [each for minute in range(9) for each in steady(60, 1.0, 60.0 * minute)] + steady(600, 0.1, 540.0)
    rates = dict(traffic([*arrivals, Arrival(600.0, 1, 1)], GRID, MINUTE).requests_per_second)
    assert rates == {
        RateChoice.MEAN: pytest.approx(1.9),
        RateChoice.P50: 1.0,
        RateChoice.P90: 1.0,
        RateChoice.P95: 10.0,
        RateChoice.P99: 10.0,
        RateChoice.PEAK: 10.0,
    }


def test_pairs_of_requests_are_burstier_than_poisson():
    arrivals = [Arrival(10.0 * number + late, 50, 50) for number in range(100) for late in (0.0, 1e-3)]
    # Gaps of 0.001 and 9.999 s by turns: variance (4.999)^2 over mean 5^2.
    assert traffic(arrivals, GRID, MINUTE).burstiness.gap_variation == pytest.approx(1.0, rel=0.02)


def test_sizes_are_counted_where_the_grid_has_them():
    arrivals = [Arrival(None, 100, 1), Arrival(None, 101, 1), Arrival(None, 5000, 1), Arrival(None, 0, 0)]
    found = traffic(arrivals, GRID, MINUTE)
    assert found.histogram == Histogram(GRID, ((2.0,), (2.0,)))
    assert (found.beyond, found.duration, found.requests_per_second, found.burstiness) == (1, None, (), None)
    assert found.rate(RateChoice.PEAK) is None


def test_sizes_rarer_than_one_in_a_thousand_are_left_out():
    found = traffic([*[Arrival(None, 1, 1)] * 1001, Arrival(None, 500, 1)], GRID, MINUTE)
    assert (found.rare, found.histogram.weights) == (1, ((1001.0,), (0.0,)))


@pytest.mark.parametrize(
    ("arrivals", "window", "message"),
    [
        pytest.param([], MINUTE, "--trace: has no requests", id="empty"),
        pytest.param(steady(3, 1.0), MINUTE, "--trace-window: the trace is 2 s long", id="shorter than a window"),
        pytest.param(steady(3, 1.0), timedelta(0), "--trace-window: expected a duration above 0", id="no window"),
        pytest.param([Arrival(0.0, 1, 1), Arrival(math.inf, 1, 1)], MINUTE, "finite", id="infinite time"),
    ],
)
def test_traces_that_say_nothing_are_refused(arrivals, window, message):
    with pytest.raises(InvalidInputError, match=message):
        traffic(arrivals, GRID, window)


@given(
    st.lists(
        st.tuples(st.integers(0, 100_000), st.integers(0, 20_000), st.integers(0, 3_000)), min_size=2, max_size=60
    ),
    st.integers(-1_000_000, 1_000_000),
    st.randoms(use_true_random=False),
)
def test_order_and_offset_do_not_matter_and_nothing_is_lost(requests, offset, random):
    arrivals = [Arrival(at / 100, inputs, outputs) for at, inputs, outputs in requests]
    if max(each.at_s for each in arrivals) - min(each.at_s for each in arrivals) < 1:
        return
    moved = [Arrival(each.at_s + offset, each.input_tokens, each.output_tokens) for each in arrivals]
    random.shuffle(moved)
    window = timedelta(seconds=1)
    one, other = traffic(arrivals, GRID, window), traffic(moved, GRID, window)
    assert one.histogram == other.histogram
    assert sum(map(sum, one.histogram.weights)) + one.rare == len(arrivals)
    rates = dict(one.requests_per_second)
    assert rates[RateChoice.P50] <= rates[RateChoice.P90] <= rates[RateChoice.P95] <= rates[RateChoice.PEAK]
    assert 0 <= rates[RateChoice.MEAN] <= rates[RateChoice.PEAK]
