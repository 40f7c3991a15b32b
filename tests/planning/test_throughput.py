"""From latency points to requests/s within an SLO: what is believed, and what is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.accelerators import Shape
from medley.core.latency import LatencyModel
from medley.core.profiles import Confidence, FittedLatency, Latency, LatencyPoint, Profile, ProfileSource
from medley.core.workload import Bucket, SizeGrid, Slo
from medley.planning.predicted import Extrapolated
from medley.planning.throughput import (
    JointUnknown,
    NotMeasured,
    OutOfReach,
    PercentileMissing,
    SloMissed,
    TooFarBeyond,
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


class TestBothBoundsTogether:
    """Of 100 requests 1 may miss. How many miss both bounds is not in the percentiles, so misses are added up."""

    LATENCIES = (
        Latency(99, ms(300), ms(30)),
        Latency(99.5, ms(600), ms(45)),
        Latency(99.9, ms(900), ms(60)),
    )

    def profile(self, *latencies):
        return profile(LatencyPoint(1000, 50, 2.0, latencies or self.LATENCIES))

    def found(self, promise, *latencies):
        found = sustained(self.profile(*latencies), promise, GRID, longest=4096)
        return dict(found.throughput.requests_per_second) or dict(found.unable), dict(found.doubts)

    @pytest.mark.parametrize(
        ("ttft", "tpot", "kept"),
        [
            pytest.param(600, 45, True, id="half of the misses each"),
            pytest.param(300, 30, False, id="each alone at 99, together as few as 98"),
            pytest.param(300, 60, False, id="all misses of one, and some of the other"),
            pytest.param(599, 60, False, id="a little too late"),
        ],
    )
    def test_misses_of_either_add_up(self, ttft, tpot, kept):
        rates, doubts = self.found(slo(ttft=ttft, tpot=tpot))
        assert all(isinstance(each, float) for each in rates.values()) is kept
        assert doubts == {}

    def test_one_bound_alone_is_held_at_the_percentile(self):
        assert self.found(slo(ttft=None, tpot=30)) == ({SHORT: 2.0, LONG: 2.0}, {})

    def test_too_few_percentiles_leave_a_doubt(self):
        unsure = JointUnknown(99)
        assert self.found(slo(ttft=300, tpot=30), Latency(99, ms(300), ms(30))) == (
            {SHORT: 2.0, LONG: 2.0},
            {SHORT: unsure, LONG: unsure},
        )
        assert str(unsure).endswith("both together may hold for as few as 98 % of requests")


# A 7B model on an A100, about, measured to prompts of 2,000 tokens, contexts of 2,500 and 64 requests at once.
A100 = FittedLatency(LatencyModel(10e-3, 80e-6, 60e-6, 0.2e-6, 200_000, 128, 8192), 0.1, 2000, 64, 2500)
WIDE = SizeGrid((500, 1000, 2000, 4000, 8000), (50, 500, 1000))


def modelled(*points: LatencyPoint, latency=A100, **changes) -> Profile:
    return profile(*points, max_model_len=16_000, latency=latency, **changes)


class TestLatencyModel:
    def test_what_was_measured_has_no_doubts(self):
        found = sustained(modelled(), slo(tpot=20), SizeGrid((1000, 2000), (50, 500)), longest=2500)
        assert (found.unable, found.doubts) == ((), ())
        assert all(rate > 0 for _, rate in found.throughput.requests_per_second)

    def test_sizes_beyond_are_served_with_a_doubt_and_far_beyond_not_at_all(self):
        found = sustained(modelled(confidence=Confidence.HIGH), slo(ttft=2000, tpot=60), WIDE, longest=16_000)
        doubts = dict(found.extrapolated)
        rates = dict(found.throughput.requests_per_second)
        assert doubts[Bucket(3, 0)] == Extrapolated(4000, 50, "prompt tokens in a step", 4000, 2000)
        assert Bucket(3, 0) in rates
        assert dict(found.unable)[Bucket(4, 0)] == TooFarBeyond("prompt tokens in a step", 8000, 2000)
        assert Bucket(2, 0) not in doubts
        assert found.confidence is Confidence.MEDIUM
        assert str(doubts[Bucket(3, 0)]) == (
            "4000 + 50 tokens are extrapolated to 4000 prompt tokens in a step, measured up to 2000"
        )

    def test_a_profile_of_unknown_confidence_stays_unknown(self):
        assert sustained(modelled(), slo(tpot=60), WIDE, longest=16_000).confidence is None

    def test_more_requests_at_once_than_measured_are_a_doubt(self):
        few = FittedLatency(A100.model, 0.1, 2000, 4, 2500)  # and no more than twice 4 are believed
        found = sustained(modelled(latency=few), slo(tpot=60), SizeGrid((500,), (500,)), longest=2500)
        (bucket, doubt), *_ = found.extrapolated
        assert (bucket, doubt.what, doubt.measured) == (Bucket(0, 0), "requests at once", 4)
        assert doubt.reached <= 8

    def test_a_promise_that_an_idle_replica_breaks(self):
        found = sustained(modelled(), slo(ttft=None, tpot=5), SizeGrid((500,), (50,)), longest=2500)
        reason = dict(found.unable)[Bucket(0, 0)]
        assert isinstance(reason, OutOfReach)
        assert reason.tpot > ms(10)

    def test_measured_points_go_before_the_model(self):
        found = judged(modelled(point(1000, 50, 0.125, 100, 20)), slo(tpot=60), longest=2500)
        assert found == {SHORT: 0.125, LONG: 0.125}
        beyond = judged(modelled(point(100, 50, 0.125, 100, 20)), slo(tpot=60), longest=2500)
        assert beyond == {SHORT: 0.125, LONG: 0.125}, "a larger size never serves more, whatever the model says"


promises = st.builds(
    slo,
    ttft=st.one_of(st.none(), st.floats(50, 5000)),
    tpot=st.floats(8, 200),
    percentile=st.sampled_from([50, 90, 95, 98, 99, 99.5]),
)
models = st.builds(
    FittedLatency,
    st.builds(
        LatencyModel,
        st.floats(1e-3, 50e-3),
        st.floats(1e-6, 500e-6),
        st.floats(0, 300e-6),
        st.floats(0, 1e-6),
        st.integers(4000, 500_000),
        st.integers(1, 256),
        st.sampled_from([512, 2048, 8192]),
    ),
    st.floats(0, 1),
    st.sampled_from([512, 2048, 8192]),
    st.integers(1, 256),
    st.sampled_from([1000, 4000, 16_000]),
)
measured_points = st.lists(
    st.builds(
        lambda inputs, outputs, rate, ttfts, tpots: LatencyPoint(
            inputs,
            outputs,
            rate,
            tuple(
                Latency(percentile, ms(ttft), ms(tpot))
                for percentile, ttft, tpot in zip((90, 99, 99.9), sorted(ttfts), sorted(tpots), strict=True)
            ),
        ),
        st.sampled_from([100, 500, 2000]),
        st.sampled_from([50, 500]),
        st.sampled_from([0.5, 1, 2]),
        st.lists(st.integers(50, 3000), min_size=3, max_size=3),
        st.lists(st.integers(8, 200), min_size=3, max_size=3),
    ),
    max_size=6,
    unique_by=lambda each: (each.input_tokens, each.output_tokens, each.requests_per_second),
)
profiles = st.builds(
    lambda points, latency: profile(*points, max_model_len=16_000, latency=latency),
    measured_points,
    st.one_of(st.none(), models),
)


def rates_of(each, promise):
    return dict(sustained(each, promise, WIDE, longest=16_000).throughput.requests_per_second)


@settings(max_examples=30, deadline=None)
@given(profiles, promises)
def test_a_larger_size_never_serves_more(each, promise):
    rates = rates_of(each, promise)
    for large, rate in rates.items():
        for small in WIDE.buckets():
            if small.input <= large.input and small.output <= large.output:
                assert rates[small] >= rate


@settings(max_examples=30, deadline=None)
@given(profiles, promises, st.floats(1, 3), st.floats(1, 3), st.sampled_from([50, 90, 95, 98, 99, 99.5]))
def test_a_tighter_promise_never_serves_more(each, promise, ttft, tpot, percentile):
    tighter = Slo(
        max(percentile, promise.percentile),
        None if promise.ttft is None else promise.ttft / ttft,
        promise.tpot / tpot,
    )
    loose = rates_of(each, promise)
    for bucket, rate in rates_of(each, tighter).items():
        assert rate <= loose[bucket] * (1 + 1e-6)
