"""Whatever numbers come in: a plan whose invariants hold, a named infeasibility, or an error that names a field."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.errors import InvalidInputError
from medley.core.service import Histogram, Limits, SpotPolicy
from medley.core.workload import Demand
from medley.planning.allocator import allocate
from medley.planning.problem import (
    Allocation,
    AllocationProblem,
    Cap,
    Infeasible,
    Load,
    LossScenario,
    Quota,
    ShapeThroughput,
    Spread,
)
from medley.testing.allocation import GRID

# What people and their scripts write: ordinary numbers, the ends of ranges, and what is no number.
ABSURD = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, -1e-9, 0.0, 1e300, 1e-300])
RATE = st.sampled_from([1e-9, 1e-6, 0.3, 1.0, 7.0, 40.0, 1e3, 1e6])
PRICE = st.sampled_from([1e-6, 0.01, 0.7, 3.67, 1e4, 1e6])
FRACTION = st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.999, 1.0])
COUNT = st.sampled_from([None, 0, 1, 5, 100_000])
ZONES = ("zone-a", "zone-b")


@st.composite
def inputs(draw, *, absurd: bool):
    """Return a function that makes a problem, so that refusals happen inside the test."""

    def number(ordinary):
        return draw(ordinary | ABSURD if absurd else ordinary)

    buckets = draw(st.lists(st.sampled_from(GRID.buckets()), unique=True, max_size=4))
    demand = tuple((bucket, number(RATE)) for bucket in sorted(buckets))
    shapes = draw(st.lists(st.sampled_from(["a", "b", "c"]), unique=True, max_size=3))
    tables = [
        (name, tuple((b, number(RATE)) for b in GRID.buckets() if draw(st.booleans())), draw(st.booleans()))
        for name in shapes
    ]
    loads = [(b, number(st.sampled_from([0.0, 1e-9, 0.5, 1e6]))) for b in GRID.buckets()]
    sold = [
        (name, market, zone, number(PRICE), draw(COUNT), number(st.sampled_from([0.0, 0.1, 10.0])))
        for name in shapes
        for market in (Market.ON_DEMAND, Market.SPOT)
        for zone in ZONES[: draw(st.integers(0, 2))]
    ]
    most, least = draw(st.sampled_from([0, 1, 20, 10_000_000])), draw(st.sampled_from([0, 1, 3]))
    budget = draw(
        st.sampled_from([None, Decimal(0), Decimal("3.5"), Decimal("1e9"), Decimal("NaN")][: 5 if absurd else 4])
    )
    quotas = [(number(st.sampled_from([0.0, 2.0, 1e6])), draw(st.sampled_from([None, Market.SPOT])))]
    floor, survive, share, zones = (
        number(FRACTION),
        number(FRACTION),
        number(FRACTION),
        draw(st.sampled_from([1, 2, 9])),
    )
    utilisation = number(st.sampled_from([1e-3, 0.85, 1.0]))
    scenario = draw(st.sampled_from([(), (LossScenario(accelerator_class="a", survive=0.5),)]))

    def build() -> AllocationProblem:
        return AllocationProblem(
            Demand(GRID, demand),
            tuple(
                Offering(OfferingKey(Shape(name), market, zone), price, cap, rate, timedelta(minutes=5))
                for name, market, zone, price, cap, rate in sold
            ),
            tuple(
                ShapeThroughput(Shape(name), rows, (Load("memory", tuple(loads)),) if more else ())
                for name, rows, more in tables
            ),
            limits=Limits(budget, most, least),
            spot=SpotPolicy(on_demand_floor=floor, survive_zone_loss=survive),
            caps=(Cap("nodes", 3, ((OfferingKey(Shape("a"), Market.SPOT, "zone-a"), 0.5),)),),
            quotas=tuple(Quota(gpus, market=market) for gpus, market in quotas),
            spread=Spread(zones, share or 1.0),
            utilisation=utilisation,
            scenarios=scenario,
        )

    return build


def check(asked: AllocationProblem) -> None:
    """Assert what holds of every answer, a plan or the best that can be had; numbers may be fifteen orders apart."""
    found = allocate(asked)
    plan = found.best if isinstance(found, Infeasible) else found
    prices = {o.key: o.usd_per_hour for o in asked.offerings}
    caps = {o.key: o.max_replicas for o in asked.offerings}
    counts = dict(plan.replicas)
    total = sum(counts.values())
    assert all(isinstance(count, int) and count > 0 for count in counts.values())
    assert math.isclose(plan.usd_per_hour, sum(prices[k] * n for k, n in counts.items()), rel_tol=1e-9, abs_tol=1e-6)
    assert all(caps[k] is None or n <= caps[k] for k, n in counts.items())
    assert total <= asked.limits.max_replicas
    assert asked.limits.max_usd_per_hour is None or plan.usd_per_hour <= float(asked.limits.max_usd_per_hour) + 1e-3
    for cap in asked.all_caps:
        assert sum(use * counts.get(k, 0) for k, use in cap.uses) <= cap.at_most + 1e-4
    by_bucket: dict = {}
    for share in plan.shares:
        by_bucket[share.bucket] = by_bucket.get(share.bucket, 0.0) + share.share
    assert all(math.isclose(part, 1.0) for part in by_bucket.values())
    if isinstance(found, Infeasible):
        assert found.bindings
        assert all(binding.message for binding in found.bindings)
        return
    assert total >= asked.limits.min_replicas
    assert by_bucket.keys() == {bucket for bucket, _ in asked.demand.requests_per_second}
    demand = dict(asked.demand.requests_per_second)
    for shape in asked.rates:
        usable = sum(asked.utilisations[k] * n for k, n in counts.items() if k.shape == shape)
        for _, loads in asked.rows[shape]:
            load = sum(demand[s.bucket] * s.share * loads.get(s.bucket, 0.0) for s in plan.shares if s.shape == shape)
            assert load <= usable * (1 + 2e-3) + 1e-6


def answered(build) -> None:
    """Assert that input is refused by the name of its field, or gets an answer that holds."""
    try:
        asked = build()
    except InvalidInputError as error:
        refusal = error
    else:
        check(asked)
        return
    assert str(refusal).startswith(f"{refusal.field}: ")


@settings(max_examples=120)
@given(inputs(absurd=False))
def test_ends_of_ranges_give_a_plan_or_say_what_is_missing(build):
    answered(build)


@settings(max_examples=120)
@given(inputs(absurd=True))
def test_absurd_numbers_are_refused_by_name_or_harmless(build):
    answered(build)


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param((), id="empty"),
        pytest.param(((0.0, 0.0), (0.0, 0.0)), id="all zero"),
        pytest.param(((1.0, math.nan), (0.0, 0.0)), id="NaN"),
        pytest.param(((1.0, -1.0), (0.0, 0.0)), id="negative"),
        pytest.param(((1.0,), (0.0,)), id="too narrow"),
    ],
)
def test_a_histogram_without_sense_is_refused(weights):
    with pytest.raises(InvalidInputError, match="weights"):
        Histogram(GRID, weights)


@pytest.mark.parametrize("rate", [1e-9, 1e6])
def test_one_bucket_at_the_ends_of_the_rates(rate):
    bucket = GRID.buckets()[0]
    asked = AllocationProblem(
        Demand(GRID, ((bucket, rate),)),
        (Offering(OfferingKey(Shape("a"), Market.ON_DEMAND, "zone-a"), 0.7, None),),
        (ShapeThroughput(Shape("a"), ((bucket, 4.0),)),),
        limits=Limits(max_replicas=1_000_000, min_replicas=0),
        utilisation=1.0,
    )
    found = allocate(asked)
    assert isinstance(found, Allocation)
    assert (found.total_replicas, found.gap) == (max(1, round(rate / 4)), 0.0)
