"""What samples say: percentiles that enough requests lie beyond, saturation, the next rate."""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.profiles import Latency, LatencyPoint
from medley.planning.measuring import Cell, Outcome, Sample, latencies, next_rate, outcome, saturated

CELL = Cell(100, 11, 2.0)


def sample(arrived=0.0, ttft=0.1, tpot=0.02, tokens=11, failure=None):
    return Sample(arrived, arrived + ttft, arrived + ttft + tpot * (tokens - 1), tokens, failure)


def steady(number=200, **changes):
    return [sample(arrived=n / 2, **changes) for n in range(number)]


def of(ttft, tpot, percentile):
    return Latency(percentile, timedelta(seconds=ttft), timedelta(seconds=tpot))


def test_latencies_of_one_request():
    one = sample(arrived=5.0, ttft=0.25, tpot=0.5, tokens=3)
    assert (one.ttft_s, one.tpot_s) == (0.25, 0.5)
    assert sample(tokens=1).tpot_s == 0.0


def test_a_percentile_is_the_request_at_its_rank():
    found = latencies([sample(ttft=n / 100, tpot=0.02) for n in range(1, 201)])
    assert [(each.percentile, each.ttft.total_seconds()) for each in found] == [
        (50, 1.0),
        (90, 1.8),
        (95, 1.9),
        (99, 1.98),
    ]


@pytest.mark.parametrize(
    ("requests", "highest"),
    [
        pytest.param(20, 90, id="two beyond the 90th"),
        pytest.param(199, 95, id="less than two beyond the 99th"),
        pytest.param(200, 99, id="two"),
        pytest.param(400, 99.5, id="two beyond the 99.5th"),
        pytest.param(2000, 99.9, id="two beyond the 99.9th"),
    ],
)
def test_percentiles_that_one_request_decides_are_left_out(requests, highest):
    assert latencies(steady(requests))[-1].percentile == highest


def test_a_failed_request_is_one_that_never_ended():
    samples = [*steady(196), *(Sample(200.0, failure="HTTP 500") for _ in range(4))]
    assert [each.percentile for each in latencies(samples)] == [50, 90, 95]
    found = outcome(CELL, samples)
    assert (found.requests, found.failures, found.saturated) == (200, 4, False)


def test_the_point_of_a_steady_rate():
    found = outcome(CELL, steady())
    assert found.point == LatencyPoint(100, 11, 2.0, found.latencies)
    assert {each.ttft for each in found.latencies} == {timedelta(seconds=0.1)}
    assert {each.tpot for each in found.latencies} == {timedelta(seconds=0.02)}


def queueing(served_per_second, *, number=200, rate=2.0):
    """Requests of a server that takes one at a time."""
    free, found = 0.0, []
    for n in range(number):
        arrived = n / rate
        start = max(free, arrived)
        free = start + 1 / served_per_second
        found.append(Sample(arrived, start + 0.5 / served_per_second, free, 11))
    return found


@pytest.mark.parametrize(
    ("samples", "full"),
    [
        pytest.param(queueing(4.0), False, id="twice as fast as they come"),
        pytest.param(queueing(1.0), True, id="half as fast as they come"),
        pytest.param(queueing(1.7), True, id="a little too slow"),
        pytest.param(queueing(2.0), False, id="just as fast"),
        pytest.param([], False, id="no requests"),
        pytest.param(steady(5, ttft=1.0), False, id="too few to tell"),
        pytest.param(
            [sample(n / 2, ttft=0.1 + 0.001 * n) for n in range(200)], False, id="slower, but none is left over"
        ),
    ],
)
def test_saturation_is_a_queue_that_grows(samples, full):
    assert saturated(samples) is full


def test_of_a_saturated_replica_nothing_goes_into_the_profile():
    found = outcome(CELL, queueing(1.0))
    assert found == Outcome(CELL, 200, 0, saturated=True, latencies=())
    assert found.point is None
    assert outcome(CELL, steady(), aborted=True).point is None


def done(rate, *, full=False):
    return Outcome(Cell(100, 11, rate), 200, 0, full, () if full else (of(0.1, 0.02, 99.0),))


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        pytest.param([], 0.1, id="a fifth of one after the other"),
        pytest.param([done(0.1)], 0.15, id="half as much again"),
        pytest.param([done(0.15), done(0.1)], 0.225, id="from the highest"),
        pytest.param([done(0.1), done(0.15, full=True)], None, id="saturated"),
        pytest.param([Outcome(CELL, 10, 10, saturated=False, latencies=())], None, id="nothing to go by"),
    ],
)
def test_rates_rise_until_it_is_saturated(outcomes, expected):
    assert next_rate(outcomes, 2.0, growth=1.5) == expected


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.001, 10), st.floats(0, 1)), min_size=20, max_size=300))
def test_latencies_ascend(drawn):
    found = latencies([sample(arrived, ttft, tpot) for arrived, ttft, tpot in drawn])
    for below, above in pairwise(found):
        assert (below.percentile, below.ttft, below.tpot) <= (above.percentile, above.ttft, above.tpot)
        assert below.ttft <= above.ttft
        assert below.tpot <= above.tpot
    assert all(math.isfinite(each.ttft.total_seconds()) for each in found)
