"""The allocator against facts, against an enumeration of all small fleets, and against Mélange's own programme."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from medley.core.accelerators import Market, Shape
from medley.core.errors import InvalidInputError
from medley.core.service import Limits, SpotPolicy
from medley.planning.allocator import allocate, on_demand_only
from medley.planning.melange import SlicedAllocation, sliced
from medley.planning.problem import Allocation, AllocationProblem, Cap, Infeasible, Share
from medley.testing.allocation import (
    FREE,
    LARGE,
    LONG_OUT,
    MELANGE_EXAMPLE,
    SMALL,
    key,
    melange,
    offer,
    problem,
    problems,
    rates,
)

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
CENT = 0.005


def test_one_class_is_bought_as_often_as_its_load_asks():
    found = allocate(problem({SMALL: 7.0}, [offer("l4", 0.7)], [rates("l4", {SMALL: 2.0})]))
    assert found == Allocation(
        replicas=((key("l4"), 4),), shares=(Share(SMALL, Shape("l4"), 1.0),), usd_per_hour=2.8, gap=0.0
    )


def test_utilisation_leaves_room_for_bursts():
    found = allocate(problem({SMALL: 7.0}, [offer("l4", 0.7)], [rates("l4", {SMALL: 2.0})], utilisation=0.85))
    assert found == Allocation(((key("l4"), 5),), (Share(SMALL, Shape("l4"), 1.0),), 3.5, 0.0)


def test_no_demand_needs_no_replicas_but_the_fewest_allowed():
    offered, able = [offer("l4", 0.7), offer("a100", 3.67)], [rates("l4", {SMALL: 2.0}), rates("a100", {SMALL: 9.0})]
    assert allocate(problem({}, offered, able)) == Allocation((), (), 0.0, 0.0)
    kept = problem({}, offered, able, limits=Limits(min_replicas=2))
    assert allocate(kept) == Allocation(((key("l4"), 2),), (), 1.4, 0.0)


def test_a_demand_too_small_for_the_solvers_tolerance_still_gets_a_replica():
    found = allocate(problem({SMALL: 1e-9}, [offer("l4", 0.7)], [rates("l4", {SMALL: 2.0})]))
    assert found == Allocation(((key("l4"), 1),), (Share(SMALL, Shape("l4"), 1.0),), 0.7, 0.0)


def test_a_mix_is_cheaper_than_either_class_alone():
    # 10 small requests/s fill 2 x l4 and 1.0 large requests/s half an a100, whose other half serves the rest.
    asked = problem(
        {SMALL: 10.0, LARGE: 1.0},
        [offer("l4", 1.0), offer("a100", 4.0)],
        [rates("l4", {SMALL: 4.0}), rates("a100", {SMALL: 10.0, LARGE: 2.0})],
    )
    found = allocate(asked)
    assert isinstance(found, Allocation)
    assert (found.replicas, found.usd_per_hour) == (((key("a100"), 1), (key("l4"), 2)), 6.0)


def test_shares_leave_no_shape_busier_than_need_be():
    asked = problem(
        {SMALL: 3.0},
        [offer("a", 1.0, at_most=1), offer("b", 1.0, at_most=1)],
        [rates("a", {SMALL: 2.0}), rates("b", {SMALL: 2.0})],
    )
    assert allocate(asked) == Allocation(
        replicas=((key("a"), 1), (key("b"), 1)),
        shares=(Share(SMALL, Shape("a"), 0.5), Share(SMALL, Shape("b"), 0.5)),
        usd_per_hour=2.0,
        gap=0.0,
    )


def test_melange_example_is_cheaper_with_continuous_shares():
    found = allocate(melange(MELANGE_EXAMPLE, 30.0))
    assert isinstance(found, Allocation)
    assert (found.replicas, found.usd_per_hour) == (((key("A100-80GB"), 1), (key("A10G"), 1)), 4.68)


class TestBounds:
    MARKETS = (offer("l4", 1.0), offer("l4", 0.4, SPOT, "zone-a"), offer("l4", 0.4, SPOT, "zone-b"))
    ABLE = (rates("l4", {SMALL: 1.0}),)

    @pytest.mark.parametrize(
        ("floor", "bought"),
        [
            pytest.param(0.0, {(SPOT, "zone-a"): 5}, id="none: all spot"),
            pytest.param(0.2, {(SPOT, "zone-a"): 4, (ON_DEMAND, "zone-a"): 1}, id="a fifth of five is one"),
            pytest.param(0.21, {(SPOT, "zone-a"): 3, (ON_DEMAND, "zone-a"): 2}, id="a little more is two: rounded up"),
            pytest.param(1.0, {(ON_DEMAND, "zone-a"): 5}, id="all: no spot"),
        ],
    )
    def test_on_demand_floor(self, floor, bought):
        found = allocate(problem({SMALL: 5.0}, self.MARKETS, self.ABLE, spot=SpotPolicy(on_demand_floor=floor)))
        assert isinstance(found, Allocation)
        assert dict(found.replicas) == {key("l4", market, zone): count for (market, zone), count in bought.items()}

    @pytest.mark.parametrize(
        ("survive", "bought"),
        [
            pytest.param(0.5, {"zone-a": 2, "zone-b": 2}, id="half of four: two in each zone"),
            pytest.param(0.6, {"zone-a": 3, "zone-b": 3}, id="2.4 of four: three must be left"),
            pytest.param(1.0, {"zone-a": 4, "zone-b": 4}, id="all: twice, still cheaper than on-demand"),
        ],
    )
    def test_what_survives_the_loss_of_a_zone(self, survive, bought):
        found = allocate(problem({SMALL: 4.0}, self.MARKETS, self.ABLE, spot=SpotPolicy(survive_zone_loss=survive)))
        assert isinstance(found, Allocation)
        assert dict(found.replicas) == {key("l4", SPOT, zone): count for zone, count in bought.items()}

    def test_on_demand_survives_the_loss_of_its_zones_spot(self):
        offered = [offer("l4", 1.0), offer("l4", 0.9, SPOT)]
        found = allocate(problem({SMALL: 4.0}, offered, self.ABLE, spot=SpotPolicy(survive_zone_loss=1.0)))
        assert isinstance(found, Allocation)
        assert dict(found.replicas) == {key("l4"): 4}

    def test_offerings_share_a_cap(self):
        shared = Cap("nodes of l4, spot", 3, ((key("l4", SPOT, "zone-a"), 1.0), (key("l4", SPOT, "zone-b"), 0.5)))
        found = allocate(problem({SMALL: 8.0}, self.MARKETS, self.ABLE, caps=(shared,)))
        assert isinstance(found, Allocation)
        assert dict(found.replicas) == {key("l4"): 2, key("l4", SPOT, "zone-b"): 6}

    def test_budget_and_replicas_choose_what_is_affordable(self):
        offered = [offer("small", 1.0), offer("big", 3.5)]
        able = [rates("small", {SMALL: 1.0}), rates("big", {SMALL: 3.0})]
        assert dict(allocate(problem({SMALL: 6.0}, offered, able)).replicas) == {key("small"): 6}
        few = problem({SMALL: 6.0}, offered, able, limits=Limits(max_replicas=4, max_usd_per_hour=Decimal(7)))
        assert dict(allocate(few).replicas) == {key("big"): 1, key("small"): 3}


class TestTies:
    OFFERED = tuple(offer("l4", 1.0, zone=zone) for zone in ("zone-b", "zone-a", "zone-c"))
    ABLE = (rates("l4", {SMALL: 1.0}),)

    def test_go_to_the_first_by_name(self):
        found = allocate(problem({SMALL: 2.0}, self.OFFERED, self.ABLE))
        assert dict(found.replicas) == {key("l4", zone="zone-a"): 2}

    def test_go_to_the_fleet_that_exists_before_the_name(self):
        fleet = ((key("l4", zone="zone-b"), 1), (key("l4", zone="zone-c"), 2))
        found = allocate(problem({SMALL: 3.0}, self.OFFERED, self.ABLE, fleet=fleet))
        assert dict(found.replicas) == dict(fleet)

    def test_never_cost_money(self):
        cheaper = (*self.OFFERED[:2], offer("l4", 0.9, zone="zone-c"))
        fleet = ((key("l4", zone="zone-a"), 3),)
        found = allocate(problem({SMALL: 3.0}, cheaper, self.ABLE, fleet=fleet))
        assert dict(found.replicas) == {key("l4", zone="zone-c"): 3}


def test_the_counterfactual_has_no_spot_and_no_budget():
    asked = problem(
        {SMALL: 4.0},
        [offer("l4", 1.0), offer("l4", 0.4, SPOT)],
        [rates("l4", {SMALL: 1.0})],
        limits=Limits(max_usd_per_hour=Decimal(2)),
    )
    assert allocate(asked).usd_per_hour == 1.6
    assert allocate(on_demand_only(asked)) == Allocation(((key("l4"), 4),), (Share(SMALL, Shape("l4"), 1.0),), 4.0, 0.0)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        pytest.param(lambda: rates("l4", {SMALL: math.nan}), "profile of l4", id="NaN rate"),
        pytest.param(lambda: rates("l4", {SMALL: -1.0}), "profile of l4", id="negative rate"),
        pytest.param(lambda: problem({SMALL: 1.0}, [offer("l4", math.nan)], []), "price of l4/on-demand/zone-a", id="NaN price"),
        pytest.param(lambda: problem({SMALL: 1.0}, [offer("l4", 0.0)], []), "price of l4/on-demand/zone-a", id="price 0"),
        pytest.param(lambda: problem({SMALL: 1.0}, [offer("l4", math.inf)], []), "price of l4/on-demand/zone-a", id="infinite price"),
        pytest.param(lambda: problem({SMALL: 1.0}, [offer("l4", 1), offer("l4", 2)], []), "offering l4/on-demand/zone-a", id="offered twice"),
        pytest.param(lambda: problem({SMALL: math.nan}, [], []), "spec.workload", id="NaN demand"),
        pytest.param(
            lambda: problem({SMALL: 1e300}, [offer("l4", 1)], [rates("l4", {SMALL: 1.0})]),
            "spec.workload.requestsPerSecond",
            id="absurd demand",
        ),
        pytest.param(lambda: problem({}, [], [], utilisation=math.nan), "utilisation", id="NaN utilisation"),
        pytest.param(lambda: problem({}, [], [], utilisation=0.0), "utilisation", id="utilisation 0"),
        pytest.param(lambda: problem({}, [], [], limits=Limits(max_usd_per_hour=Decimal("NaN"))), "spec.limits.maxUSDPerHour", id="NaN budget"),
        pytest.param(lambda: problem({}, [], [], limits=Limits(max_replicas=1, min_replicas=2)), "spec.limits.minReplicas", id="min above max"),
        pytest.param(lambda: problem({}, [], [], spot=SpotPolicy(on_demand_floor=1.2)), "spec.spot.onDemandFloor", id="floor above 100%"),
        pytest.param(lambda: Cap("nodes", math.nan, ()), "nodes", id="NaN cap"),
    ],
)  # fmt: skip
def test_absurd_numbers_are_refused_by_the_name_of_their_field(build, field):
    with pytest.raises(InvalidInputError) as caught:
        build()
    assert caught.value.field == field


# --- properties ---------------------------------------------------------------------------------------------------


def serves(asked: AllocationProblem, counts: dict, fraction: float = 1.0) -> bool:
    """Say whether replicas serve a fraction of every bucket: a linear programme of its own, solved by scipy."""
    demand = asked.demand.requests_per_second
    if not demand:
        return True
    columns = [(b, s) for b, (bucket, _) in enumerate(demand) for s, table in asked.rates.items() if bucket in table]
    if len({b for b, _ in columns}) < len(demand):
        return False
    shapes = list(asked.rates)
    load, share = np.zeros((len(shapes), len(columns))), np.zeros((len(demand), len(columns)))
    for column, (b, shape) in enumerate(columns):
        bucket, rate = demand[b]
        load[shapes.index(shape), column] = rate / asked.rates[shape][bucket]
        share[b, column] = 1.0
    usable = [
        sum(asked.utilisations[k] * count for k, count in counts.items() if k.shape == shape) + 1e-6 for shape in shapes
    ]
    return linprog(
        np.zeros(len(columns)), A_ub=load, b_ub=usable, A_eq=share, b_eq=np.full(len(demand), fraction), method="highs"
    ).success


def permitted(asked: AllocationProblem, counts: dict) -> bool:
    """Say whether replicas keep every bound and serve the demand, in normal times and after the loss of a zone."""
    total, limits = sum(counts.values()), asked.limits
    spot = sum(count for k, count in counts.items() if k.market is SPOT)
    caps = {o.key: o.max_replicas for o in asked.offerings}
    prices = {o.key: o.usd_per_hour for o in asked.offerings}
    zones = {o.key.zone for o in asked.offerings if o.key.market is SPOT}
    return (
        limits.min_replicas <= total <= limits.max_replicas
        and all(caps[k] is None or count <= caps[k] for k, count in counts.items())
        and total - spot >= math.ceil(asked.spot.on_demand_floor * total - 1e-9)
        and (
            limits.max_usd_per_hour is None
            or math.fsum(prices[k] * c for k, c in counts.items()) <= float(limits.max_usd_per_hour) + 1e-6
        )
        and serves(asked, counts)
        and (
            asked.spot.survive_zone_loss == 0
            or all(
                serves(
                    asked,
                    {k: c for k, c in counts.items() if not (k.market is SPOT and k.zone == zone)},
                    asked.spot.survive_zone_loss,
                )
                for zone in zones
            )
        )
    )


@settings(max_examples=60)
@given(problems(most_shapes=3, bounded=True))
def test_an_allocation_keeps_every_bound_and_serves_the_demand(asked):
    found = allocate(asked)
    allocation = found.best if isinstance(found, Infeasible) else found
    prices = {o.key: o.usd_per_hour for o in asked.offerings}
    assert all(count > 0 for _, count in allocation.replicas)
    assert allocation.usd_per_hour == round(sum(prices[k] * count for k, count in allocation.replicas), 6)
    if isinstance(found, Allocation):
        assert permitted(asked, dict(found.replicas))
        for bucket, _ in asked.demand.requests_per_second:
            assert math.isclose(sum(s.share for s in found.shares if s.bucket == bucket), 1.0)
        for shape, table in asked.rates.items():
            load = sum(
                dict(asked.demand.requests_per_second)[s.bucket] * s.share / table[s.bucket]
                for s in found.shares
                if s.shape == shape
            )
            usable = sum(asked.utilisations[k] * count for k, count in found.replicas if k.shape == shape)
            assert load <= usable * (1 + 2e-3)
    else:
        assert found.bindings
        assert allocation.total_replicas <= asked.limits.max_replicas


@st.composite
def tiny_problems(draw):
    """Problems whose every sensible fleet can be listed: loads of a few replicas, two shapes, two markets."""
    load = st.floats(0.1, 1.5).map(lambda value: round(value, 2))
    demand = dict.fromkeys(draw(st.sets(st.sampled_from((SMALL, LONG_OUT, LARGE)), min_size=1)), 1.0)
    able = [
        rates("a", {b: 1 / draw(load) for b in demand}),
        rates("b", {b: 1 / draw(load) for b in demand if draw(st.booleans())}),
    ]
    price = st.floats(0.5, 3.0).map(lambda value: round(value, 2))
    offered = [offer(name, draw(price)) for name in ("a", "b")]
    offered += [offer("a", draw(price), SPOT, zone) for zone in ("zone-a", "zone-b")]
    return problem(
        demand,
        offered,
        able,
        limits=Limits(max_replicas=draw(st.integers(2, 8)), min_replicas=0),
        spot=SpotPolicy(
            on_demand_floor=draw(st.sampled_from([0.0, 0.3])), survive_zone_loss=draw(st.sampled_from([0.0, 0.7]))
        ),
    )


@settings(max_examples=40)
@given(tiny_problems())
def test_no_fleet_is_cheaper_by_enumeration(asked):
    keys = [o.key for o in asked.offerings]
    prices = [o.usd_per_hour for o in asked.offerings]
    most = asked.limits.max_replicas
    fleets = [f for f in itertools.product(range(most + 1), repeat=len(keys)) if sum(f) <= most]
    fleets.sort(key=lambda fleet: sum(p * n for p, n in zip(prices, fleet, strict=True)))
    cheapest = next((f for f in fleets if permitted(asked, dict(zip(keys, f, strict=True)))), None)
    found = allocate(asked)
    if cheapest is None:
        assert isinstance(found, Infeasible)
    else:
        assert isinstance(found, Allocation)
        assert math.isclose(found.usd_per_hour, sum(p * n for p, n in zip(prices, cheapest, strict=True)), abs_tol=CENT)


@given(problems(), st.sampled_from([1, 2, 4, 8]))
def test_continuous_shares_are_never_dearer_than_slices(asked, slices):
    whole = AllocationProblem(asked.demand, asked.offerings, asked.throughput, limits=FREE, utilisation=1.0)
    cut = sliced(asked.demand, asked.throughput, {o.key.shape: o.usd_per_hour for o in asked.offerings}, slices=slices)
    found = allocate(whole)
    assert isinstance(cut, SlicedAllocation)
    assert isinstance(found, Allocation)
    assert found.usd_per_hour <= cut.usd_per_hour + CENT


@settings(max_examples=25)
@given(problems(bounded=True), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(asked, random):
    offerings, throughput = list(asked.offerings), list(asked.throughput)
    random.shuffle(offerings)
    random.shuffle(throughput)
    shuffled = AllocationProblem(
        asked.demand,
        tuple(offerings),
        tuple(throughput),
        limits=asked.limits,
        spot=asked.spot,
        utilisation=asked.utilisation,
    )
    assert allocate(shuffled) == allocate(asked)


@settings(max_examples=30)
@given(problems(bounded=True))
def test_a_fleet_that_is_the_plan_stays_the_plan(asked):
    found = allocate(asked)
    assume(isinstance(found, Allocation))
    again = allocate(
        AllocationProblem(
            asked.demand,
            asked.offerings,
            asked.throughput,
            limits=asked.limits,
            spot=asked.spot,
            utilisation=asked.utilisation,
            fleet=found.replicas,
        )
    )
    assert again.replicas == found.replicas


@given(problems(bounded=True))
def test_spot_never_makes_a_plan_dearer(asked):
    free = AllocationProblem(
        asked.demand, asked.offerings, asked.throughput, limits=FREE, utilisation=asked.utilisation
    )
    assert allocate(free).usd_per_hour <= allocate(on_demand_only(free)).usd_per_hour + CENT
