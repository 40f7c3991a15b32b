"""What a plan costs when nobody knows how long answers become, and what it promises all the same."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.accelerators import Shape
from medley.core.errors import InvalidInputError
from medley.core.workload import Bucket, Demand, SizeGrid
from medley.planning.allocator import allocate
from medley.planning.ignorance import Class, arrivals, blind, for_all_limits, learned
from medley.planning.presets import COUNTS, preset
from medley.planning.problem import Allocation, Load, ShapeThroughput, Share
from medley.testing.allocation import (
    GRID,
    LARGE,
    LONG_IN,
    LONG_OUT,
    SMALL,
    config,
    melange,
    offer,
    problem,
    problems,
    rates,
)

SLACK = 0.01
CENT = 0.005


def asked(demand, throughput, *names):
    return problem(demand, [offer(name, 1.0) for name in names], throughput)


def test_a_forecast_has_one_class_per_input_range():
    demand = Demand(GRID, ((SMALL, 3.0), (LONG_OUT, 1.0), (LONG_IN, 2.0)))
    assert arrivals(demand) == (
        Class(LONG_OUT, 4.0, ((0, 0.75), (1, 0.25))),
        Class(LONG_IN, 2.0, ((0, 1.0),)),
    )


def test_a_class_is_loaded_by_the_expected_load():
    given_ = asked({SMALL: 3.0, LONG_OUT: 1.0}, [rates("l4", {SMALL: 2.0, LONG_OUT: 0.5})], "l4")
    found = blind(given_, arrivals(given_.demand), SLACK)
    assert found.demand == Demand(GRID, ((LONG_OUT, 4.0),))
    # 0.75 / 2 + 0.25 / 0.5 replicas per request/s
    assert found.throughput == (rates("l4", {LONG_OUT: 1 / 0.875}),)


def test_further_loads_are_expected_too():
    loads = (Load("memory", ((SMALL, 0.1), (LONG_OUT, 0.4))), Load("slots", ((LONG_OUT, 0.2),)))
    row = ShapeThroughput(Shape("l4"), ((SMALL, 2.0), (LONG_OUT, 0.5)), loads, throughput_row=False)
    given_ = asked({SMALL: 3.0, LONG_OUT: 1.0}, [row], "l4")
    (found,) = blind(given_, arrivals(given_.demand), SLACK).throughput
    assert [load.name for load in found.loads] == ["memory", "slots"]
    assert [dict(load.per_request)[LONG_OUT] for load in found.loads] == pytest.approx([0.175, 0.05])
    assert not found.throughput_row


@pytest.mark.parametrize(("missed", "gets"), [(0.009, True), (0.011, False)])
def test_a_shape_that_cannot_serve_some_outputs_needs_slack(missed, gets):
    given_ = asked({SMALL: 1 - missed, LONG_OUT: missed}, [rates("l4", {SMALL: 2.0})], "l4")
    found = blind(given_, arrivals(given_.demand), SLACK)
    assert bool(found.throughput) is gets


def test_what_misses_the_promise_loads_its_replica_all_the_same():
    given_ = asked({SMALL: 0.995, LONG_OUT: 0.005}, [rates("l4", {SMALL: 2.0})], "l4")
    (found,) = blind(given_, arrivals(given_.demand), SLACK).throughput
    # 1000 outputs after 100 inputs hold 1000 x (100 + 500) token-steps, 100 outputs 100 x (100 + 50): 40 times as much.
    assert dict(found.requests_per_second)[LONG_OUT] == pytest.approx(2 / (0.995 + 0.005 * 40))


def test_a_hole_in_a_profile_is_filled_by_the_next_longer_size():
    grid = SizeGrid((100,), (10, 100, 1000))
    row = ShapeThroughput(Shape("l4"), ((Bucket(0, 0), 4.0), (Bucket(0, 2), 1.0)))
    one = Class(Bucket(0, 2), 1.0, ((0, 0.5), (1, 0.005), (2, 0.495)))
    given_ = asked({}, [], "l4")
    given_ = type(given_)(Demand(grid, ((Bucket(0, 0), 1.0),)), given_.offerings, (row,))
    (found,) = blind(given_, (one,), SLACK).throughput
    assert dict(found.requests_per_second)[Bucket(0, 2)] == pytest.approx(1 / (0.5 / 4 + 0.5))


def test_shares_are_the_same_for_every_max_tokens_that_the_plan_does_not_know():
    l4, h100 = Shape("l4"), Shape("h100")
    table = for_all_limits([Share(LONG_OUT, l4, 0.4), Share(LONG_OUT, h100, 0.6), Share(LONG_IN, l4, 1.0)], GRID)
    assert table == (
        Share(SMALL, l4, 0.4),
        Share(SMALL, h100, 0.6),
        Share(LONG_OUT, l4, 0.4),
        Share(LONG_OUT, h100, 0.6),
        Share(LONG_IN, l4, 1.0),
        Share(LARGE, l4, 1.0),
    )


def test_what_is_counted_takes_the_place_of_what_was_believed():
    prior = Class(LONG_OUT, 4.0, ((0, 0.5), (1, 0.5)))
    assert learned(prior, {}, weight=10) == prior
    assert learned(prior, {0: 30}, weight=10) == Class(LONG_OUT, 4.0, ((0, 0.875), (1, 0.125)))
    assert learned(prior, {0: 30}, weight=0) == Class(LONG_OUT, 4.0, ((0, 1.0),))
    assert learned(prior, {}, weight=0) == prior


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: Class(SMALL, 1.0, ((0, 0.5),)), id="not whole"),
        pytest.param(lambda: Class(SMALL, 1.0, ((0, math.nan),)), id="NaN"),
        pytest.param(lambda: Class(SMALL, 1.0, ((1, 1.0),)), id="more than max_tokens"),
        pytest.param(lambda: learned(Class(SMALL, 1.0, ((0, 1.0),)), {0: -1}, weight=1), id="negative count"),
        pytest.param(lambda: learned(Class(SMALL, 1.0, ((0, 1.0),)), {}, weight=math.nan), id="NaN weight"),
        pytest.param(lambda: blind(asked({}, [], "l4"), (), 1.0), id="slack of all"),
    ],
)
def test_absurd_numbers_are_refused(build):
    with pytest.raises(InvalidInputError):
        build()


@settings(max_examples=60)
@given(problems(), st.sampled_from([0.0, 0.01, 0.1]))
def test_ignorance_is_never_free_where_every_size_is_served(given_, slack):
    """A blind plan's shares, taken for every output of a class, are a plan for those who know."""
    found = allocate(blind(given_, arrivals(given_.demand), slack))
    if slack == 0 and isinstance(found, Allocation):
        assert found.usd_per_hour >= allocate(given_).usd_per_hour - CENT


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_no_requests_are_lost_on_the_way(name):
    demand = preset(name).demand(7.0)
    classes = arrivals(demand)
    assert math.isclose(math.fsum(each.requests_per_second for each in classes), 7.0)
    back = {
        Bucket(each.bucket.input, output): part * each.requests_per_second
        for each in classes
        for output, part in each.outputs
    }
    assert back == pytest.approx(dict(demand.requests_per_second))


@pytest.mark.data
def test_the_six_workloads_cost_at_most_a_sixth_more(data):
    for file in sorted((data / "mix").glob("synthetic-*.json")):
        known = melange(config(file), 4.0)
        unknown = blind(known, arrivals(known.demand), SLACK)
        assert 1 <= allocate(unknown).usd_per_hour / allocate(known).usd_per_hour < 1.17, file.stem
