"""Capacity of mixtures: rows by hand, the step time that gets the most out of them, and saturated engines."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.service import Limits
from medley.core.workload import Bucket, Demand, SizeGrid, Slo
from medley.planning.allocator import allocate
from medley.planning.mixture import (
    Sizes,
    Stream,
    capacity,
    mixed,
    operating_step,
    served,
    serves,
    streams,
    use,
    work_s,
)
from medley.planning.problem import Allocation, AllocationProblem
from medley.simulation.arrivals import Requests
from medley.simulation.fleet import Replica, serve

MODEL = LatencyModel(
    step_s=0.010,
    per_prefill_token_s=0.0001,
    per_sequence_s=0.0001,
    per_context_token_s=1e-6,
    kv_tokens=50_000,
    max_running=64,
    max_batched_tokens=2048,
)
SLO = Slo(99, timedelta(seconds=2), timedelta(milliseconds=40))
LOOSE = Slo(99, timedelta(hours=1), None)
GRID = SizeGrid((100, 2000), (10, 400))
sizes = st.tuples(st.integers(1, 4000), st.integers(1, 1000))


def test_work_is_prompt_and_tokens_and_contexts():
    # 100 prompt tokens; 10 further tokens, which read 100 + 11/2 on average.
    assert work_s(MODEL, 100, 11) == pytest.approx(0.010 + 10 * 0.0001 + 10 * 105.5 * 1e-6)


def test_use_is_every_resource_by_hand():
    found = use(MODEL, 0.020, [Stream(100, 11, 2.0)])
    assert found.time == pytest.approx(2 * (0.011 + 0.001055) / 0.5)
    assert found.memory == pytest.approx(2 * 0.020 * (108 + 10 * (100 + 5.5 + 8)) / 50_000)
    assert found.slots == pytest.approx(2 * 0.020 * 11 / 64)
    assert found.tokens == pytest.approx(2 * 0.020 * 110 / 2048)
    assert (found.most, found.bound) == (found.time, "time")


def test_the_step_may_take_all_of_the_bound_where_time_is_scarce():
    assert operating_step(MODEL, SLO, [Stream(2000, 10, 1.0)]) == 0.040


@settings(max_examples=40)
@given(st.lists(sizes, min_size=1, max_size=4), st.integers(500, 50_000), st.integers(1, 64))
def test_no_other_step_time_carries_more(mix, kv_tokens, slots):
    model = replace(MODEL, kv_tokens=kv_tokens, max_running=slots)
    parts = [Stream(i, o, 1.0) for i, o in mix]
    best = capacity(model, SLO, parts)
    for step in np.linspace(0.0101, 0.040, 20):
        assert 1 / use(model, float(step), parts).most <= best * (1 + 1e-9)


def test_a_promise_below_the_empty_step_is_out_of_reach():
    tight = replace(SLO, tpot=timedelta(milliseconds=10))
    assert operating_step(MODEL, tight, [Stream(100, 10, 1.0)]) is None
    assert capacity(MODEL, tight, [Stream(100, 10, 1.0)]) is None


@given(st.lists(sizes, min_size=2, max_size=5), st.floats(0.0105, 0.040))
def test_rows_are_linear(mix, step_s):
    parts = [Stream(i, o, 0.5 + n) for n, (i, o) in enumerate(mix)]
    whole = use(MODEL, step_s, parts)
    single = [use(MODEL, step_s, [part]) for part in parts]
    for name in ("time", "memory", "slots", "tokens"):
        assert getattr(whole, name) == pytest.approx(sum(getattr(each, name) for each in single))


def test_a_bucket_spread_evenly_has_the_moments_of_its_sizes():
    found = streams(Demand(GRID, ((Bucket(1, 1), 8.0),)), longest=10_000, sizes=Sizes.EVEN)[Bucket(1, 1)]
    inputs, outputs = np.arange(101, 2001), np.arange(11, 401)
    assert sum(each.requests_per_second for each in found) == 8.0
    assert np.mean([each.input_tokens for each in found]) == pytest.approx(inputs.mean())
    assert np.var([each.input_tokens for each in found]) == pytest.approx(inputs.var())
    assert np.var([each.output_tokens for each in found]) == pytest.approx(outputs.var())


def test_the_largest_request_stands_for_a_bucket_unless_told_otherwise():
    assert streams(Demand(GRID, ((Bucket(1, 0), 3.0),)), longest=10_000) == {Bucket(1, 0): (Stream(2000, 10, 3.0),)}


def test_sizes_that_do_not_fit_or_break_the_promise_when_idle_are_not_served():
    assert serves(MODEL, SLO, 2000, 400)
    assert not serves(replace(MODEL, kv_tokens=2300), SLO, 2000, 400)
    assert not serves(MODEL, replace(SLO, ttft=timedelta(milliseconds=200)), 2000, 1)
    assert not serves(replace(MODEL, step_s=0.041), SLO, 10, 2)
    assert serves(replace(MODEL, step_s=0.041), SLO, 10, 1)  # one token has no time per further token
    tight = replace(SLO, ttft=timedelta(milliseconds=100))
    assert served(MODEL, tight, GRID, longest=4000) == (Bucket(0, 0), Bucket(0, 1))


def test_the_allocator_buys_for_the_resource_that_binds_and_not_for_the_sum_of_both():
    """Prompts take step time, long answers take slots: one replica carries nearly both at once."""
    model = replace(MODEL, max_running=16)
    demand = Demand(GRID, ((Bucket(1, 0), 3.0), (Bucket(0, 1), 1.2)))
    row = mixed(Shape("a"), model, SLO, demand, longest=4000)
    rates, loads = dict(row.requests_per_second), {load.name: dict(load.per_request) for load in row.loads}
    summed = sum(rate / rates[bucket] for bucket, rate in demand.requests_per_second)
    most = max(sum(rate * load[bucket] for bucket, rate in demand.requests_per_second) for load in loads.values())
    assert most < summed

    def bought(scale: float) -> int:
        problem = AllocationProblem(
            Demand(GRID, tuple((bucket, rate * scale) for bucket, rate in demand.requests_per_second)),
            (Offering(OfferingKey(Shape("a"), Market.ON_DEMAND, "z"), 1.0, None),),
            (row,),
            limits=Limits(max_replicas=1000, min_replicas=0),
            utilisation=1.0,
        )
        found = allocate(problem)
        assert isinstance(found, Allocation)
        return found.total_replicas

    assert bought(10.0) == int(np.ceil(10 * most)) < int(np.ceil(10 * summed))


@pytest.mark.parametrize(
    "mix",
    [[(2000, 5)], [(50, 400)], [(8000, 30), (50, 400)], [(500, 100), (100, 300)]],
    ids=["prompts", "answers", "both", "mixed"],
)
def test_a_saturated_engine_carries_what_the_rows_say(mix):
    model = replace(MODEL, max_running=24)
    parts = [Stream(i, o, 1.0) for i, o in mix]
    chosen = np.random.default_rng(1).choice(len(mix), 1500)
    requests = Requests(
        np.arange(1500) * 1e-6, np.array([i for i, _ in mix])[chosen], np.array([o for _, o in mix])[chosen]
    )
    ends = np.sort(serve(requests, [Replica("a", "s", model)]).last_token_s)
    measured = 900 / (ends[1200] - ends[300])
    assert capacity(model, LOOSE, parts) * len(mix) == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("size", [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0), (1, 1, float("nan")), (float("inf"), 1, 1.0)])
def test_a_stream_that_cannot_be_is_refused(size):
    with pytest.raises(InvalidInputError, match="mix"):
        Stream(*size)


def test_a_step_that_is_shorter_than_an_empty_one_is_refused():
    with pytest.raises(InvalidInputError, match="step_s"):
        use(MODEL, 0.010, [Stream(1, 1, 1.0)])


@given(sizes, st.floats(1.1, 10))
def test_more_of_a_mix_is_carried_fewer_times(size, factor):
    assume(serves(MODEL, SLO, *size))
    one, more = (capacity(MODEL, SLO, [Stream(*size, rate)]) for rate in (1.0, factor))
    assert more == pytest.approx(one / factor)
