"""From latency points to requests/s within an SLO: what is believed, and what is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.accelerators import Shape
from medley.core.profiles import Latency, LatencyPoint, Profile, ProfileSource
from medley.core.workload import Bucket, SizeGrid, Slo
from medley.planning.throughput import (
    NotMeasured,
    PercentileMissing,
    SloMissed,
    TooLong,
    largest_request,
    most_trusted,
    sustained,
)

GRID = SizeGrid((100, 1000), (50,))
SHORT, LONG = GRID.buckets()


def ms(value: float) -> timedelta:
    return timedelta(milliseconds=value)


def slo(*, ttft: float | None = 1000, tpot: float | None = 40, percentile: float = 99) -> Slo:
    return Slo(percentile, None if ttft is None else ms(ttft), None if tpot is None else ms(tpot))


def point(inputs, outputs, rate, ttft, tpot, percentile=99) -> LatencyPoint:  # noqa: PLR0917
    return LatencyPoint(inputs, outputs, rate, (Latency(percentile, ms(ttft), ms(tpot)),))


def profile(*points: LatencyPoint, max_model_len: int = 4096, name: str = "p", **changes) -> Profile:
    values = {"source": ProfileSource.MEASURED, "measured_at": None, "max_running": 64} | changes
    return Profile(name=name, model="m", shape=Shape("l4"), max_model_len=max_model_len, points=points, **values)


def judged(measured: Profile, promise: Slo, *, grid: SizeGrid = GRID, longest: int = 4096):
    found = sustained(measured, promise, grid, longest=longest)
    return dict(found.throughput.requests_per_second) | dict(found.unable)


def test_between_measured_rates_lies_a_straight_line():
    # TPOT goes from 20 to 60 ms between 2 and 4 requests/s, so 40 ms is met up to 3.
    measured = profile(point(1000, 50, 2, 100, 20), point(1000, 50, 4, 100, 60))
    assert judged(measured, slo()) == {SHORT: 3.0, LONG: 3.0}


def test_the_stricter_bound_decides():
    # TTFT crosses 400 ms at 2.5 requests/s, before TPOT crosses 40 ms at 3.
    measured = profile(point(1000, 50, 2, 200, 20), point(1000, 50, 4, 1000, 60))
    assert judged(measured, slo(ttft=400)) == {SHORT: 2.5, LONG: 2.5}


def test_nothing_is_believed_beyond_the_highest_measured_rate():
    measured = profile(point(1000, 50, 2, 100, 20), point(1000, 50, 4, 100, 21))
    assert judged(measured, slo()) == {SHORT: 4.0, LONG: 4.0}


def test_after_a_broken_promise_a_kept_one_is_luck():
    measured = profile(point(1000, 50, 1, 100, 40), point(1000, 50, 2, 100, 41), point(1000, 50, 3, 100, 30))
    assert judged(measured, slo()) == {SHORT: 1.0, LONG: 1.0}


def test_a_size_is_judged_by_the_smallest_measured_size_that_covers_it():
    measured = profile(point(100, 50, 9, 100, 20), point(1000, 50, 2, 100, 20), point(2000, 2000, 0.1, 100, 20))
    assert judged(measured, slo()) == {SHORT: 9.0, LONG: 2.0}


def test_of_two_smallest_sizes_neither_within_the_other_the_better_is_believed():
    measured = profile(point(100, 500, 3, 100, 20), point(500, 100, 5, 100, 20))
    assert judged(measured, slo(), grid=SizeGrid((100,), (50,))) == {Bucket(0, 0): 5.0}


def test_larger_sizes_than_measured_are_not_served():
    measured = profile(point(100, 50, 9, 100, 20), point(999, 2000, 1, 100, 20))
    assert judged(measured, slo()) == {SHORT: 9.0, LONG: NotMeasured(1000, 50, (999, 2000))}


def test_a_promise_broken_at_the_lowest_rate_is_said_with_the_best_latencies():
    measured = profile(point(1000, 50, 0.5, 300, 55), point(1000, 50, 1, 400, 70))
    missed = SloMissed(0.5, ms(300), ms(55))
    assert judged(measured, slo()) == {SHORT: missed, LONG: missed}
    assert str(missed) == "at 0.5 requests/s, the lowest rate measured, TTFT is 300 ms and TPOT 55 ms"


@pytest.mark.parametrize(
    ("measured_at", "promised", "expected"),
    [
        pytest.param(99, 99, 2.0, id="the same percentile"),
        pytest.param(99, 95, 2.0, id="a higher one is safe"),
        pytest.param(95, 99, PercentileMissing(99, 95), id="a lower one says nothing"),
    ],
)
def test_percentiles(measured_at, promised, expected):
    measured = profile(point(1000, 50, 2, 100, 20, measured_at))
    assert judged(measured, slo(percentile=promised)) == {SHORT: expected, LONG: expected}


@pytest.mark.parametrize("promise", [slo(ttft=None), slo(tpot=None)], ids=["no TTFT", "no TPOT"])
def test_what_is_not_promised_does_not_matter(promise):
    hopeless = {"ttft": 9e5, "tpot": 20} if promise.ttft is None else {"ttft": 100, "tpot": 9e5}
    measured = profile(point(1000, 50, 2, **hopeless))
    assert judged(measured, promise) == {SHORT: 2.0, LONG: 2.0}


class TestLongRequests:
    def test_a_replica_that_holds_less_than_the_service_admits(self):
        measured = profile(point(1000, 50, 2, 100, 20), max_model_len=500)
        assert judged(measured, slo()) == {SHORT: 2.0, LONG: TooLong(1050, 500)}

    def test_sizes_that_no_admitted_request_has_are_left_out(self):
        measured = profile(point(1000, 50, 2, 100, 20))
        assert judged(measured, slo(), longest=101) == {SHORT: 2.0}

    def test_at_the_limit_a_point_near_the_longest_request_will_do(self):
        # No request is 4000 + 250 tokens if 4096 is the most; 3840 + 256 is measured at the limit.
        grid = SizeGrid((2000, 4000), (100, 250))
        measured = profile(point(3840, 256, 2, 100, 20))
        assert judged(measured, slo(), grid=grid)[Bucket(1, 1)] == 2.0

    @given(st.integers(2, 3000))
    def test_largest_request_of_a_bucket(self, longest):
        """Against an enumeration of all requests of the bucket 100 < input <= 1000, 20 < output <= 50."""
        grid = SizeGrid((100, 1000), (20, 50))
        inputs = [i for i in range(101, 1001) if i + 21 <= longest]
        outputs = [o for o in range(21, 51) if o + 101 <= longest]
        expected = (max(inputs), max(outputs)) if inputs and outputs else None
        assert largest_request(grid, Bucket(1, 1), longest) == expected


def test_the_most_trusted_profile_of_a_shape_is_used():
    old, new = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    one = point(1, 1, 1, 1, 1)
    estimated = profile(one, name="a", source=ProfileSource.ESTIMATED, measured_at=new)
    measured = profile(one, name="b", measured_at=old)
    later = profile(one, name="c", measured_at=new)
    twin = profile(one, name="d", measured_at=new)
    assert most_trusted([estimated, measured]) == (measured,)
    assert most_trusted([later, estimated, measured]) == (later,)
    assert most_trusted([twin, later]) == (later,)


@given(
    st.lists(st.tuples(st.floats(0.1, 50), st.floats(1, 100), st.floats(1, 100)), min_size=1, max_size=6, unique_by=lambda p: p[0]),
    st.floats(1, 100),
)  # fmt: skip
def test_a_rate_is_never_above_what_was_measured_and_a_laxer_promise_never_lowers_it(measured, bound):
    points = [point(1000, 50, rate, ttft, tpot) for rate, ttft, tpot in measured]
    strict = judged(profile(*points), slo(ttft=None, tpot=bound))[LONG]
    lax = judged(profile(*points), slo(ttft=None, tpot=bound * 1.5))[LONG]
    if isinstance(strict, float):
        assert 0 < strict <= max(rate for rate, _, _ in measured)
        assert isinstance(lax, float)
        assert lax >= strict - 1e-9
