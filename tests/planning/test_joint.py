"""Services that share quotas: prices against the best of all combinations, bounds, priorities, and who holds what."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medley.core.accelerators import Market
from medley.core.errors import InvalidInputError
from medley.planning.allocator import allocate
from medley.planning.combining import Known, Plan
from medley.planning.commons import shared_caps
from medley.planning.ilp import Effort
from medley.planning.joint import Holding, Sharer, together
from medley.planning.problem import Allocation, Cap, Infeasible, Quota
from medley.testing.allocation import FREE, SMALL, key, offer, problem, rates

CENT = 0.005
SPOT = key("l4", Market.SPOT)
DEMAND = key("l4")
BIG = key("h100")


def service(rate: float, *, dear: float | None = 3.0, limits=FREE):
    """Return a service for l4 on spot at 1.00, and, if it may, something dearer."""
    others = [offer("h100", dear)] if dear is not None else []
    return problem(
        {SMALL: rate},
        [offer("l4", 1.0, Market.SPOT), *others],
        [rates("l4", {SMALL: 1.0}), rates("h100", {SMALL: 1.0})],
        limits=limits,
    )


def spot_nodes(at_most: float) -> Cap:
    return Cap("nodes of l4, spot, zone-a", at_most, ((SPOT, 1.0),))


def test_services_that_fit_are_planned_as_if_alone():
    sharers = [Sharer("a", service(3.0)), Sharer("b", service(2.0))]
    found = together(sharers, [spot_nodes(5)])
    assert [dict(found.of[name].replicas) for name in "ab"] == [{SPOT: 3}, {SPOT: 2}]
    assert (found.usd_per_hour, found.bound, found.gap, found.prices) == (5.0, 5.0, 0.0, ())
    assert found.exhausted == (Holding("nodes of l4, spot, zone-a", 5, (("a", 3.0), ("b", 2.0))),)
    assert found.rivals("a") == (Holding("nodes of l4, spot, zone-a", 5, (("b", 2.0),)),)


def test_who_gains_most_by_a_quota_gets_it():
    sharers = [Sharer("a", service(3.0, dear=2.0)), Sharer("b", service(3.0, dear=5.0))]
    found = together(sharers, [spot_nodes(4)])
    assert dict(found.of["b"].replicas) == {SPOT: 3}
    assert dict(found.of["a"].replicas) == {SPOT: 1, BIG: 2}
    assert found.usd_per_hour == pytest.approx(8.0)
    assert found.gap < 0.01
    # One more spot node would spare a one h100.
    assert dict(found.prices)["nodes of l4, spot, zone-a"] == pytest.approx(1.0, abs=0.2)


def test_a_budget_is_shared_like_a_quota():
    sharers = [Sharer(name, service(3.0, dear=None)) for name in "ab"]
    found = together(sharers, [Cap("budget of the team", 6.0, ((SPOT, 1.0),))])
    assert found.usd_per_hour == pytest.approx(6.0)
    found = together(sharers, [Cap("budget of the team", 5.0, ((SPOT, 1.0),))])
    assert isinstance(found.of["b"], Infeasible)
    assert found.of["b"].message.startswith("AcceleratorClass.spec.zones: exhausted: budget of the team (2)")
    assert found.rivals("b") == (Holding("budget of the team", 5.0, (("a", 3.0),)),)


def test_a_budget_is_taken_of_by_those_alone_who_draw_on_it():
    money = Cap("Budget team", 4.0, ((SPOT, 1.0),), drawn=True)
    paid = replace(service(3.0, dear=None), caps=(money,))
    found = together([Sharer("a", paid), Sharer("b", paid), Sharer("free", service(9.0, dear=None))], [money])
    assert [dict(found.of[name].replicas) for name in ("a", "free")] == [{SPOT: 3}, {SPOT: 9}]
    assert isinstance(found.of["b"], Infeasible)
    assert found.rivals("b") == (Holding("Budget team", 4.0, (("a", 3.0),)),)


def test_who_comes_first_is_served_as_far_as_it_goes_even_if_never_whole():
    """Four nodes are too few for the first alone; the second, which they would suffice for, gets what is left."""
    sharers = [Sharer("second", service(2.0, dear=None)), Sharer("first", service(5.0, dear=None), 1)]
    found = together(sharers, [spot_nodes(4)])
    assert dict(found.of["first"].best.replicas) == {SPOT: 4}
    assert dict(found.of["second"].best.replicas) == {}


@pytest.mark.parametrize(("first", "second"), [(1, 0), (0, 1)])
def test_the_higher_priority_is_served_first(first, second):
    sharers = [Sharer("a", service(3.0, dear=None), first), Sharer("b", service(3.0, dear=None), second)]
    found = together(sharers, [spot_nodes(4)])
    high, low = ("a", "b") if first else ("b", "a")
    assert dict(found.of[high].replicas) == {SPOT: 3}
    assert isinstance(found.of[low], Infeasible)
    assert found.of[low].unmet_requests_per_second == pytest.approx(2.0)
    assert dict(found.of[low].best.replicas) == {SPOT: 1}
    assert found.rivals(low) == (Holding("nodes of l4, spot, zone-a", 4, ((high, 3.0),)),)
    assert math.isinf(found.gap)


def test_a_lower_priority_that_fits_is_not_turned_away():
    """The first could take all spot nodes; it pays for something dearer, so that the second is met too."""
    sharers = [Sharer("first", service(4.0), 10), Sharer("second", service(2.0, dear=None), 0)]
    found = together(sharers, [spot_nodes(4)])
    assert dict(found.of["second"].replicas) == {SPOT: 2}
    assert dict(found.of["first"].replicas) == {SPOT: 2, BIG: 2}


def test_equals_are_served_as_given():
    sharers = [Sharer("b", service(3.0, dear=None)), Sharer("a", service(3.0, dear=None))]
    found = together(sharers, [spot_nodes(4)])
    assert isinstance(found.of["b"], Allocation)
    assert isinstance(found.of["a"], Infeasible)


def test_caps_of_one_name_are_one():
    asked = replace(service(1.0), caps=(spot_nodes(8),), quotas=(Quota(3, "h100"),))
    other = replace(service(2.0), caps=(spot_nodes(5),))
    assert shared_caps([asked, other]) == (Cap("GPUs of h100", 3, ((BIG, 1.0),)), spot_nodes(5))


def test_a_name_is_given_once():
    with pytest.raises(InvalidInputError, match="twice"):
        together([Sharer("a", service(1.0)), Sharer("a", service(1.0))], [])


@settings(max_examples=12)
@example([(1, 1.5), (2, 2.0), (2, 2.0)], 3)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([1.5, 2.0, 4.0])), min_size=2, max_size=3),
    st.integers(0, 6),
)
def test_no_combination_is_cheaper_by_enumeration(wanted, nodes):
    """Each of n replicas on spot if there is room, else dearer: every division of the nodes is tried."""
    sharers = [Sharer(str(n), service(float(count), dear=dear)) for n, (count, dear) in enumerate(wanted)]
    found = together(sharers, [spot_nodes(nodes)], wanted_gap=0.0)
    best = min(
        sum(spot + (count - spot) * dear for spot, (count, dear) in zip(division, wanted, strict=True))
        for division in itertools.product(*(range(count + 1) for count, _ in wanted))
        if sum(division) <= nodes
    )
    assert found.usd_per_hour >= best - CENT
    assert found.bound <= best + CENT
    assert found.usd_per_hour <= best * 1.02 + CENT


@settings(max_examples=8)
@given(st.lists(st.floats(0.2, 4.0), min_size=1, max_size=3), st.floats(0, 8))
def test_plans_stay_within_what_is_shared(rates_, nodes):
    found = together([Sharer(str(n), service(rate)) for n, rate in enumerate(rates_)], [spot_nodes(nodes)])
    taken = sum(
        dict((answer if isinstance(answer, Allocation) else answer.best).replicas).get(SPOT, 0)
        for _, answer in found.answers
    )
    assert taken <= nodes + 1e-6
    assert found.bound <= found.usd_per_hour + CENT
    alone = sum(allocate(service(rate)).usd_per_hour for rate in rates_)
    assert found.usd_per_hour >= alone - CENT


ZONES = [f"zone-{letter}" for letter in "abcde"]


@settings(max_examples=6)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1.5, 2.0, 4.0])), min_size=2, max_size=3),
    st.lists(st.integers(0, 2), min_size=5, max_size=5),
    st.sampled_from([0.002, 0.05, 0.5]),
)
def test_rough_plans_bound_from_below_too(wanted, nodes, gap):
    """More offerings than are enumerated, solved as roughly as those of many offerings: spot nodes in five zones."""
    caps = [
        Cap(f"nodes of l4, spot, {zone}", float(n), ((key("l4", Market.SPOT, zone), 1.0),))
        for zone, n in zip(ZONES, nodes, strict=True)
    ]
    sharers = [
        Sharer(
            str(number),
            replace(
                problem(
                    {SMALL: float(count)},
                    [
                        *(offer("l4", 1.0 + 0.01 * place, Market.SPOT, zone) for place, zone in enumerate(ZONES)),
                        *(offer("h100", dear + 0.01 * place, zone=zone) for place, zone in enumerate(ZONES)),
                    ],
                    [rates("l4", {SMALL: 1.0}), rates("h100", {SMALL: 1.0})],
                ),
                effort=Effort(relative_gap=gap),
            ),
        )
        for number, (count, dear) in enumerate(wanted)
    ]
    found = together(sharers, caps)
    # Who pays most for something dearer takes what there is, the cheapest zones first.
    spot = [1.0 + 0.01 * place for place, n in enumerate(nodes) for _ in range(n)]
    dearest = sorted((dear for count, dear in wanted for _ in range(count)), reverse=True)
    best = sum(spot[: len(dearest)]) + sum(dearest[len(spot) :])
    assert found.bound <= best + CENT
    assert best <= found.usd_per_hour + CENT
    assert found.usd_per_hour * (1 - found.gap) == pytest.approx(found.bound, rel=1e-5)
    for cap in caps:
        keys = [each for each, _ in cap.uses]
        taken = sum(found.of[sharer.name].of(each) for sharer in sharers for each in keys)
        assert taken <= cap.at_most + 1e-6


def test_the_cheapest_choice_of_known_plans_keeps_within_what_is_shared():
    """Two services; a spot node spares the first 1 USD/h, the second 4, and there is one."""

    def plan(usd: float, takes: float) -> Plan:
        bought = {SPOT: 1} if takes else {BIG: 1}
        answer = allocate(service(1.0))
        assert isinstance(answer, Allocation)
        return Plan(replace(answer, replicas=tuple(bought.items())), usd, np.array([takes]))

    limit = np.array([1.0])
    known = Known(2, limit)
    plans = [[plan(1.0, 1.0), plan(2.0, 0.0)], [plan(1.0, 1.0), plan(5.0, 0.0)]]
    for place, each in enumerate(plans):
        for number in (0, 0, 1):
            known.keep(place, each[number])
    assert len(known) == 4
    assert known.together() == [plans[0][1], plans[1][0]]
    # Between what the node is worth to the one and to the other, if that is within reach.
    price = float(known.prices(np.array([0.0]), np.array([100.0]))[0])
    assert 1.0 - CENT <= price <= 4.0 + CENT
    assert known.prices(np.array([0.5]), np.array([0.2])) == pytest.approx([0.7])
    assert known.prices(np.array([6.0]), np.array([0.5])) == pytest.approx([5.5])
    assert known.cheapest(0, np.array([0.5]), limit) is plans[0][0]
    assert known.cheapest(0, np.array([1.5]), limit) is plans[0][1]
    assert known.cheapest(1, np.array([0.0]), np.array([0.0])) is plans[1][1]
    assert Known(1, limit).cheapest(0, limit, limit) is None


def test_known_plans_that_do_not_fit_together_are_no_choice():
    answer = allocate(service(1.0))
    known = Known(2, np.array([1.0]))
    for place in range(2):
        known.keep(place, Plan(answer, 1.0, np.array([1.0])))
    assert known.together() is None
    assert known.prices(np.zeros(1), np.ones(1)) == pytest.approx([1.0])
