"""What is said when the demand cannot be met: what stays unserved, which bound binds, and how far it would have to move."""

from __future__ import annotations

from decimal import Decimal

import pytest

from medley.core.accelerators import Market, Shape
from medley.core.service import Limits, SpotPolicy
from medley.planning.allocator import allocate
from medley.planning.problem import Allocation, Binding, Bound, Cap, Infeasible, Share
from medley.testing.allocation import GRID, LARGE, SMALL, key, offer, problem, rates

SPOT = Market.SPOT
ABLE = (rates("l4", {SMALL: 1.0}),)


def refused(asked) -> Infeasible:
    found = allocate(asked)
    assert isinstance(found, Infeasible)
    return found


def test_a_budget_that_is_too_small():
    found = refused(problem({SMALL: 10.0}, [offer("l4", 0.7)], ABLE, limits=Limits(max_usd_per_hour=Decimal("2.10"))))
    assert found == Infeasible(
        unmet=((SMALL, 7.0),),
        bindings=(Binding(Bound.BUDGET, "2.10 USD/h is too little: the demand needs 7.00 USD/h; raise the budget"),),
        best=Allocation(((key("l4"), 3),), (Share(SMALL, Shape("l4"), 1.0),), 2.1, 0.0),
    )


def test_too_few_replicas():
    found = refused(problem({SMALL: 10.0}, [offer("l4", 0.7)], ABLE, limits=Limits(max_replicas=4)))
    assert found.bindings == (
        Binding(Bound.REPLICAS, "4 replicas are too few: the demand needs 10; raise maxReplicas"),
    )
    assert found.unmet_requests_per_second == 6.0


def test_capacity_that_is_exhausted_is_named():
    shared = Cap("nodes of l4, spot, zone-a", 2, ((key("l4", SPOT), 1.0),))
    found = refused(problem({SMALL: 10.0}, [offer("l4", 0.7, at_most=3), offer("l4", 0.3, SPOT)], ABLE, caps=(shared,)))
    assert found.bindings == (
        Binding(
            Bound.CAPS,
            "exhausted: nodes of l4, spot, zone-a (2), l4/on-demand/zone-a (3); "
            "raise the quota, or allow more classes or zones",
        ),
    )
    assert dict(found.best.replicas) == {key("l4"): 3, key("l4", SPOT): 2}


def test_sizes_that_nothing_serves_are_named_and_the_rest_is_served():
    found = refused(problem({SMALL: 2.0, LARGE: 0.5}, [offer("l4", 0.7)], ABLE))
    assert found == Infeasible(
        unmet=((LARGE, 0.5),),
        bindings=(
            Binding(
                Bound.SIZES,
                "no offering serves requests of up to 1000 + 1000 tokens within the SLO (0.5 requests/s); "
                "allow a class whose profile does, relax the SLO, or lower spec.model.maxModelLen",
            ),
        ),
        best=Allocation(((key("l4"), 2),), (Share(SMALL, Shape("l4"), 1.0),), 1.4, 0.0),
    )


def test_nothing_on_offer_at_all():
    found = refused(problem({SMALL: 2.0}, [], ABLE))
    assert (found.unmet, [b.bound for b in found.bindings], found.best) == (
        ((SMALL, 2.0),),
        [Bound.SIZES],
        Allocation((), (), 0.0, 0.0),
    )


def test_a_floor_that_only_spot_could_fill():
    found = refused(problem({SMALL: 4.0}, [offer("l4", 0.3, SPOT)], ABLE, spot=SpotPolicy(on_demand_floor=0.2)))
    assert found.bindings == (
        Binding(Bound.ON_DEMAND_FLOOR, "20% of the replicas outside spot are not to be had; lower the floor"),
    )


def test_spot_in_one_zone_alone_cannot_survive_its_loss():
    found = refused(problem({SMALL: 4.0}, [offer("l4", 0.3, SPOT)], ABLE, spot=SpotPolicy(survive_zone_loss=0.5)))
    assert found.unmet == ()  # in normal times all is served
    assert found.bindings == (
        Binding(
            Bound.ZONE_LOSS,
            "50% of the demand would not survive the loss of a zone's spot; "
            "lower it, or allow more zones or on-demand capacity",
        ),
    )
    assert dict(found.best.replicas) == {key("l4", SPOT): 4}


def test_two_bounds_that_must_move_together():
    limits = Limits(max_replicas=4, max_usd_per_hour=Decimal("2.80"))
    found = refused(problem({SMALL: 10.0}, [offer("l4", 0.7)], ABLE, limits=limits))
    assert found.bindings == (
        Binding(
            Bound.BUDGET,
            "2.80 USD/h is too little: the demand needs 7.00 USD/h; raise the budget "
            "(together with spec.limits.maxReplicas)",
        ),
        Binding(
            Bound.REPLICAS,
            "4 replicas are too few: the demand needs 10; raise maxReplicas (together with spec.limits.maxUSDPerHour)",
        ),
    )
    assert found.message.startswith("spec.limits.maxUSDPerHour: 2.80 USD/h is too little")


def test_what_is_scarce_goes_to_where_it_serves_most():
    # One replica serves 4 small or 1 large requests/s; 4 requests/s more go unserved if it serves the large ones.
    asked = problem(
        {SMALL: 4.0, LARGE: 1.0},
        [offer("l4", 0.7)],
        [rates("l4", {SMALL: 4.0, LARGE: 1.0})],
        limits=Limits(max_replicas=1),
    )
    assert refused(asked).unmet == ((LARGE, 1.0),)


def test_fewer_replicas_to_be_had_than_must_be_kept():
    asked = problem({}, [offer("l4", 0.7, at_most=1)], ABLE, limits=Limits(min_replicas=2))
    found = refused(asked)
    assert ([b.bound for b in found.bindings], dict(found.best.replicas)) == ([Bound.CAPS], {key("l4"): 1})


def test_loads_far_apart_do_not_keep_the_search_going():
    # One replica serves 0.3 of one size and 40 of another: the solver's tolerance on the sum hides the small one.
    able = dict(zip(GRID.buckets(), (0.853, 22.643, 40.699, 0.338), strict=True))
    demand = dict(zip(GRID.buckets(), (36.005, 22.643, 36.005, 45.906), strict=True))
    asked = problem(demand, [offer("l4", 0.85)], [rates("l4", able)], limits=Limits(max_replicas=3))
    found = refused(asked)
    assert [binding.bound for binding in found.bindings] == [Bound.REPLICAS]
    assert dict(found.best.replicas) == {key("l4"): 3}


def test_replicas_of_which_none_is_on_offer():
    found = refused(problem({}, [], (), limits=Limits(min_replicas=2)))
    assert found == Infeasible(
        unmet=(),
        bindings=(
            Binding(Bound.MIN_REPLICAS, "nothing is on offer for 2 replicas; set it to 0, or allow more classes"),
        ),
        best=Allocation((), (), 0.0, 0.0),
    )


def test_the_best_of_a_demand_a_million_times_too_large():
    # In shares of the demand, what one replica more serves is below every tolerance.
    found = refused(
        problem(
            {SMALL: 1e5, LARGE: 9e5},
            [offer("l4", 0.7), offer("h100", 7.0, at_most=2)],
            [rates("l4", {SMALL: 2.0}), rates("h100", {SMALL: 3.0, LARGE: 1.0})],
            limits=Limits(max_replicas=5),
        )
    )
    assert dict(found.best.replicas) == {key("l4"): 3, key("h100"): 2}
    assert found.unmet == ((SMALL, pytest.approx(1e5 - 12)), (LARGE, 9e5))
    assert [binding.bound for binding in found.bindings] == [Bound.REPLICAS, Bound.CAPS]


def test_a_floor_that_is_kept_with_room_to_spare_is_not_in_the_way():
    spot = offer("l4", 0.3, SPOT, at_most=0)
    found = refused(
        problem(
            {SMALL: 10.0},
            [offer("l4", 0.7), spot],
            ABLE,
            limits=Limits(max_usd_per_hour=Decimal("2.10")),
            spot=SpotPolicy(on_demand_floor=0.2),
        )
    )
    assert [binding.bound for binding in found.bindings] == [Bound.BUDGET, Bound.CAPS]
