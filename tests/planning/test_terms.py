"""Loads, losses, quotas, spread, interruptions and changes: each as a fact, all against an enumeration of fleets."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from medley.core.accelerators import Market, Offering, Shape
from medley.core.errors import InvalidInputError
from medley.core.service import Limits, SpotPolicy
from medley.planning import programme
from medley.planning.allocator import allocate, extended, reallocate
from medley.planning.problem import (
    Allocation,
    Bound,
    Infeasible,
    Load,
    LossScenario,
    Quota,
    ShapeThroughput,
    Spread,
)
from medley.testing.allocation import FREE, LARGE, SMALL, key, offer, problem, problems, rates

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
CENT = 0.005
ABLE = (rates("l4", {SMALL: 1.0}),)


def counts(found) -> dict:
    assert isinstance(found, Allocation)
    return dict(found.replicas)


class TestLoads:
    DEMAND = {SMALL: 4.0, LARGE: 1.0}  # noqa: RUF012
    ALONE = ((SMALL, 4.0), (LARGE, 1.0))
    TIME = Load("time", ((SMALL, 0.25), (LARGE, 0.4)))
    MEMORY = Load("memory", ((SMALL, 0.05), (LARGE, 1.0)))

    @pytest.mark.parametrize(
        ("throughput", "bought"),
        [
            pytest.param(ShapeThroughput(Shape("l4"), ALONE), 2, id="as in Mélange: 1 + 1"),
            pytest.param(ShapeThroughput(Shape("l4"), ALONE, (TIME,), throughput_row=False), 2, id="time: 1.4"),
            pytest.param(ShapeThroughput(Shape("l4"), ALONE, (MEMORY,), throughput_row=False), 2, id="memory: 1.2"),
            pytest.param(
                ShapeThroughput(Shape("l4"), ALONE, (Load("slots", ((LARGE, 2.5),)),)), 3, id="the tightest counts"
            ),
        ],
    )
    def test_the_resource_that_runs_out_first_decides(self, throughput, bought):
        assert counts(allocate(problem(self.DEMAND, [offer("l4", 1.0)], [throughput]))) == {key("l4"): bought}

    def test_resources_are_not_added_up(self):
        # 0.9 of the time and 0.9 of the memory fit one replica.
        shared = (Load("time", ((SMALL, 0.2), (LARGE, 0.1))), Load("memory", ((SMALL, 0.1), (LARGE, 0.5))))
        asked = problem(
            self.DEMAND, [offer("l4", 1.0)], [ShapeThroughput(Shape("l4"), self.ALONE, shared, throughput_row=False)]
        )
        assert counts(allocate(asked)) == {key("l4"): 1}

    def test_sizes_go_where_their_resource_is_left(self):
        # `fast` has time, `big` has memory: each alone would need more.
        fast = ShapeThroughput(
            Shape("fast"), self.ALONE, (Load("memory", ((SMALL, 0.1), (LARGE, 2.0))),), throughput_row=False
        )
        big = ShapeThroughput(
            Shape("big"), self.ALONE, (Load("time", ((SMALL, 1.0), (LARGE, 0.5))),), throughput_row=False
        )
        found = allocate(problem(self.DEMAND, [offer("fast", 1.0), offer("big", 1.0)], [fast, big]))
        assert counts(found) == {key("big"): 1, key("fast"): 1}

    def test_nothing_to_bound_a_replica_is_refused(self):
        with pytest.raises(InvalidInputError, match="nothing bounds a replica"):
            ShapeThroughput(Shape("l4"), self.ALONE, throughput_row=False)
        with pytest.raises(InvalidInputError, match="load time: expected 0 or more"):
            Load("time", ((SMALL, math.nan),))


class TestLosses:
    OFFERED = (
        offer("l4", 1.0),
        offer("l4", 0.4, SPOT, "zone-a"),
        offer("l4", 0.41, SPOT, "zone-b"),
        offer("a10g", 0.5, SPOT, "zone-a"),
        offer("a10g", 0.51, SPOT, "zone-b"),
    )
    BOTH = (*ABLE, rates("a10g", {SMALL: 1.0}))

    @pytest.mark.parametrize(
        ("losses", "bought"),
        [
            pytest.param((), {("l4", "zone-a"): 4}, id="none"),
            pytest.param(
                (LossScenario(zone="zone-a", survive=1.0),), {("l4", "zone-b"): 4}, id="a zone's spot: none of it there"
            ),
            pytest.param(
                (LossScenario(accelerator_class="l4", survive=0.5),),
                {("l4", "zone-a"): 2, ("a10g", "zone-a"): 2},
                id="a class's spot: half of another class",
            ),
            pytest.param(
                (LossScenario(zone="zone-a", accelerator_class="l4", survive=0.5),),
                {("l4", "zone-a"): 2, ("l4", "zone-b"): 2},
                id="a class's spot in a zone: the other zone",
            ),
        ],
    )
    def test_what_is_left_serves(self, losses, bought):
        asked = replace(problem({SMALL: 4.0}, self.OFFERED, self.BOTH), scenarios=losses)
        assert counts(allocate(asked)) == {key(name, SPOT, zone): n for (name, zone), n in bought.items()}

    def test_a_loss_that_nothing_survives_names_the_bound(self):
        asked = replace(problem({SMALL: 4.0}, self.OFFERED[1:], self.BOTH), scenarios=(LossScenario(survive=0.5),))
        found = allocate(asked)
        assert isinstance(found, Infeasible)
        assert [binding.bound for binding in found.bindings] == [Bound.ZONE_LOSS]

    def test_everything_lost_is_no_scenario(self):
        with pytest.raises(InvalidInputError, match="nothing would be left"):
            LossScenario(market=None)


class TestQuotas:
    OFFERED = (offer("l4", 1.0), offer("l4", 0.4, SPOT, "zone-a"), offer("l4", 0.4, SPOT, "zone-b"))

    @pytest.mark.parametrize(
        ("quota", "bought"),
        [
            pytest.param(Quota(3, market=SPOT), {(SPOT, "zone-a"): 3, (ON_DEMAND, "zone-a"): 3}, id="a market"),
            pytest.param(Quota(3, zone="zone-a"), {(SPOT, "zone-a"): 3, (SPOT, "zone-b"): 3}, id="a zone"),
            pytest.param(Quota(0, "l4", SPOT), {(ON_DEMAND, "zone-a"): 6}, id="none of a class's spot"),
            pytest.param(Quota(9), {(SPOT, "zone-a"): 6}, id="all of them: enough"),
        ],
    )
    def test_gpus_are_counted_over_what_a_quota_names(self, quota, bought):
        asked = replace(problem({SMALL: 6.0}, self.OFFERED, ABLE), quotas=(quota,))
        assert counts(allocate(asked)) == {key("l4", market, zone): n for (market, zone), n in bought.items()}

    def test_a_replica_takes_all_its_gpus(self):
        wide = Shape("l4", 4)
        asked = replace(
            problem(
                {SMALL: 6.0},
                [Offering(replace(key("l4"), shape=wide), 1.0, None), offer("l4", 9.0)],
                [ShapeThroughput(wide, ((SMALL, 1.0),)), *ABLE],
            ),
            quotas=(Quota(10),),
        )
        # one replica of four GPUs and one of one serve two; 10 GPUs hold six replicas only if one of them is wide
        assert counts(allocate(asked)) == {key("l4"): 5, replace(key("l4"), shape=wide): 1}

    def test_an_exhausted_quota_is_named(self):
        asked = replace(problem({SMALL: 6.0}, self.OFFERED, ABLE), quotas=(Quota(3),))
        found = allocate(asked)
        assert isinstance(found, Infeasible)
        assert "exhausted: GPUs (3)" in found.message


class TestSpread:
    OFFERED = (offer("l4", 1.0), offer("l4", 1.1, zone="zone-b"), offer("l4", 1.2, zone="zone-c"))

    @pytest.mark.parametrize(
        ("spread", "bought"),
        [
            pytest.param(Spread(), {"zone-a": 5}, id="none"),
            pytest.param(Spread(min_zones=2), {"zone-a": 4, "zone-b": 1}, id="two zones"),
            pytest.param(Spread(min_zones=3), {"zone-a": 3, "zone-b": 1, "zone-c": 1}, id="three zones"),
            pytest.param(Spread(max_zone_share=0.6), {"zone-a": 3, "zone-b": 2}, id="three fifths in one zone"),
            pytest.param(Spread(max_zone_share=0.4), {"zone-a": 2, "zone-b": 2, "zone-c": 1}, id="two fifths"),
        ],
    )
    def test_replicas_are_spread_over_zones(self, spread, bought):
        asked = replace(problem({SMALL: 5.0}, self.OFFERED, ABLE), spread=spread)
        assert counts(allocate(asked)) == {key("l4", zone=zone): n for zone, n in bought.items()}

    def test_more_zones_than_there_are_names_the_bound(self):
        asked = replace(problem({SMALL: 5.0}, self.OFFERED[:2], ABLE), spread=Spread(min_zones=3))
        found = allocate(asked)
        assert isinstance(found, Infeasible)
        assert [binding.bound for binding in found.bindings] == [Bound.SPREAD]

    def test_no_demand_needs_no_zones(self):
        assert allocate(replace(problem({}, self.OFFERED, ABLE), spread=Spread(min_zones=3))).replicas == ()

    @pytest.mark.parametrize("values", [(0, 1.0), (1, 0.0), (1, math.nan), (1, 1.5)])
    def test_absurd_spreads_are_refused(self, values):
        with pytest.raises(InvalidInputError, match="spread"):
            Spread(*values)


class TestInterruptions:
    def spot(self, usd: float, rate: float, zone: str = "zone-a") -> Offering:
        return Offering(
            key("l4", SPOT, zone), usd, None, rate, cold_start=timedelta(minutes=6), moved_state=timedelta(minutes=3)
        )

    def test_cost_is_rate_times_lost_time_times_price(self):
        # 0.4 USD/h x 0.5 interruptions/h x 0.15 h
        assert self.spot(0.4, 0.5).interruptions_usd_per_hour == pytest.approx(0.03)
        found = allocate(problem({SMALL: 2.0}, [self.spot(0.4, 0.5)], ABLE))
        assert (found.usd_per_hour, found.interruptions_usd_per_hour) == (0.8, 0.06)
        assert found.objective == pytest.approx(0.86)

    def test_a_dearer_zone_that_is_left_alone_is_cheaper(self):
        offered = [self.spot(0.40, 1.0), self.spot(0.42, 0.1, "zone-b")]
        assert counts(allocate(problem({SMALL: 2.0}, offered, ABLE))) == {key("l4", SPOT, "zone-b"): 2}

    @pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0])
    def test_absurd_rates_are_refused(self, rate):
        with pytest.raises(InvalidInputError, match="interruptions of l4/spot/zone-a"):
            problem({}, [self.spot(0.4, rate)], [])


class TestChanges:
    OFFERED = (offer("l4", 1.0), offer("l4", 0.9, zone="zone-b"))
    FLEET = ((key("l4"), 3),)

    @pytest.mark.parametrize(
        ("usd", "zone"), [pytest.param(0.05, "zone-b", id="pays"), pytest.param(0.2, "zone-a", id="does not")]
    )
    def test_a_launch_must_pay_for_itself(self, usd, zone):
        asked = replace(
            problem({SMALL: 3.0}, self.OFFERED, ABLE, fleet=self.FLEET),
            change_usd=tuple((o.key, usd) for o in self.OFFERED),
        )
        found = allocate(asked)
        assert counts(found) == {key("l4", zone=zone): 3}
        assert found.objective == pytest.approx(3 * (0.9 + usd) if zone == "zone-b" else 3.0)

    def test_a_surcharge_counts_and_is_not_billed(self):
        asked = replace(problem({SMALL: 3.0}, self.OFFERED, ABLE), surcharge_usd=((key("l4", zone="zone-b"), 0.5),))
        found = allocate(asked)
        assert (counts(found), found.usd_per_hour, found.objective) == ({key("l4"): 3}, 3.0, pytest.approx(3.0))

    def test_after_a_loss_nothing_that_serves_is_taken_away(self):
        fleet = ((key("l4"), 2),)
        asked = problem({SMALL: 3.0}, self.OFFERED, ABLE, fleet=fleet)
        found = extended(asked)
        assert counts(found) == {key("l4"): 2, key("l4", zone="zone-b"): 1}
        assert found.gap == pytest.approx((2.9 - 2.7) / 2.9)
        assert counts(allocate(asked)) == {key("l4", zone="zone-b"): 3}

    @pytest.mark.parametrize("usd", [math.nan, math.inf, -0.1])
    def test_absurd_costs_are_refused(self, usd):
        with pytest.raises(InvalidInputError, match="changeUSD of l4"):
            replace(problem({}, self.OFFERED, ABLE), change_usd=((key("l4"), usd),))


# --- properties ---------------------------------------------------------------------------------------------------


def serves(asked, fleet: dict, part: float, lost=None) -> bool:
    """Say whether a fleet serves, by a programme with all its shares, solved by scipy."""
    demand = asked.demand.requests_per_second
    shapes = list(asked.rates)
    columns = [(b, s) for b, (bucket, _) in enumerate(demand) for s in shapes if bucket in asked.rates[s]]
    if len({b for b, _ in columns}) < len(demand):
        return False
    rows, most = [], []
    for shape in shapes:
        usable = sum(
            asked.utilisations[k] * n for k, n in fleet.items() if k.shape == shape and not (lost and lost.loses(k))
        )
        for _, loads in asked.rows[shape]:
            rows.append([demand[b][1] * loads.get(demand[b][0], 0.0) if s == shape else 0.0 for b, s in columns])
            most.append(usable + 1e-6)
    shares = [[1.0 if b == each else 0.0 for b, _ in columns] for each in range(len(demand))]
    return linprog(
        np.zeros(len(columns)), A_ub=rows, b_ub=most, A_eq=shares, b_eq=[part] * len(demand), method="highs"
    ).success


def permitted(asked, fleet: dict) -> bool:
    total = sum(fleet.values())
    zones: dict[str, int] = {}
    for each, n in fleet.items():
        zones[each.zone] = zones.get(each.zone, 0) + n
    return (
        total <= asked.limits.max_replicas
        and all(o.max_replicas is None or fleet.get(o.key, 0) <= o.max_replicas for o in asked.offerings)
        and all(sum(use * fleet.get(k, 0) for k, use in cap.uses) <= cap.at_most + 1e-9 for cap in asked.all_caps)
        and all(n <= asked.spread.max_zone_share * total + 1e-9 for n in zones.values())
        and sum(n > 0 for n in zones.values()) >= asked.spread.min_zones
        and serves(asked, fleet, 1.0)
        and all(serves(asked, fleet, part, lost) for lost, part in asked.losses)
    )


@st.composite
def tiny(draw):
    """Problems of two shapes, two markets and two zones, with everything that a problem can have."""
    load = st.floats(0.05, 1.2).map(lambda value: round(value, 2))
    demand = {SMALL: 1.0, LARGE: 1.0}

    def throughput(name: str) -> ShapeThroughput:
        more = tuple(
            Load(each, tuple((b, draw(load)) for b in demand)) for each in draw(st.sampled_from([(), ("memory",)]))
        )
        return ShapeThroughput(
            Shape(name), tuple((b, 1 / draw(load)) for b in demand), more, not more or draw(st.booleans())
        )

    price = st.floats(0.5, 3.0).map(lambda value: round(value, 2))
    offered = [
        Offering(key("a"), draw(price), None),
        Offering(key("b", zone="zone-b"), draw(price), None),
        Offering(key("a", SPOT, "zone-a"), draw(price), None, draw(st.sampled_from([0.0, 0.5])), timedelta(minutes=6)),
        Offering(key("a", SPOT, "zone-b"), draw(price), draw(st.sampled_from([None, 1])), 0.1, timedelta(minutes=6)),
    ]
    losses = [LossScenario(zone="zone-a", survive=0.5), LossScenario(accelerator_class="a", survive=0.7)]
    asked = problem(
        demand,
        offered,
        [throughput("a"), throughput("b")],
        limits=Limits(max_replicas=6, min_replicas=0),
        spot=SpotPolicy(),
    )
    return replace(
        asked,
        scenarios=tuple(each for each in losses if draw(st.booleans())),
        quotas=tuple(each for each in (Quota(2, "a"), Quota(2, market=SPOT)) if draw(st.booleans())),
        spread=Spread(draw(st.sampled_from([1, 2])), draw(st.sampled_from([1.0, 0.67]))),
        fleet=draw(st.sampled_from([(), ((key("a"), 2),)])),
        change_usd=draw(st.sampled_from([(), tuple((o.key, 0.2) for o in offered)])),
    )


@settings(max_examples=40)
@given(tiny())
def test_no_fleet_costs_less_by_enumeration(asked):
    keys = [o.key for o in asked.offerings]
    prices = [o.usd_per_hour + o.interruptions_usd_per_hour for o in asked.offerings]
    existing, change = dict(asked.fleet), dict(asked.change_usd)

    def costs(fleet) -> float:
        return sum(
            price * n + change.get(k, 0.0) * max(0, n - existing.get(k, 0))
            for k, price, n in zip(keys, prices, fleet, strict=True)
        )

    fleets = [f for f in itertools.product(range(7), repeat=len(keys)) if sum(f) <= 6]
    cheapest = next((f for f in sorted(fleets, key=costs) if permitted(asked, dict(zip(keys, f, strict=True)))), None)
    found = allocate(asked)
    if cheapest is None:
        assert isinstance(found, Infeasible)
    else:
        assert isinstance(found, Allocation)
        assert permitted(asked, {k: found.of(k) for k in keys})
        assert math.isclose(found.objective, costs(cheapest), abs_tol=CENT)


@settings(max_examples=20)
@given(problems(bounded=True), st.floats(0.5, 2.0), st.integers(0, 3))
def test_what_was_learnt_changes_no_answer(asked, factor, lost):
    _, learnt = reallocate(asked)
    other = replace(
        asked,
        offerings=tuple(
            replace(o, usd_per_hour=round(o.usd_per_hour * factor, 2) + 0.01)
            for number, o in enumerate(asked.offerings)
            if number != lost
        ),
    )
    again, cold = reallocate(other, learnt)[0], allocate(other)
    assert isinstance(again, Allocation) == isinstance(cold, Allocation)
    if isinstance(again, Allocation):
        assert again.objective == pytest.approx(cold.objective, rel=1e-5)


@settings(max_examples=30)
@given(tiny())
def test_a_plan_to_begin_from_keeps_its_programme_and_changes_no_answer(asked):
    found = allocate(asked)
    if isinstance(found, Infeasible):
        return
    values, built = programme.values(asked, dict(found.replicas)), programme.built(asked)
    assert values.keys() == {variable.key for variable in built.variables}
    assert all(values[v.key] <= (math.inf if v.upper is None else v.upper) for v in built.variables)
    for row in built.rows:
        total = sum(coefficient * values[name] for name, coefficient in row.terms.items())
        assert (-math.inf if row.at_least is None else row.at_least) - 1e-9 <= total
        assert total <= (math.inf if row.at_most is None else row.at_most) + 1e-9
    costs = programme.objective(asked)
    assert sum(usd * values[name] for name, usd in costs.items()) == pytest.approx(found.objective)
    # Begun from the best, from nothing, and from too much of everything.
    for start in (found.replicas, (), tuple((o.key, 9) for o in asked.offerings)):
        again = reallocate(asked, start=start)[0]
        assert isinstance(again, Allocation)
        assert again.objective == pytest.approx(found.objective, rel=1e-5)
        assert again.bound <= found.objective * (1 + 1e-6)


@settings(max_examples=30)
@given(problems(bounded=True))
def test_keeping_a_fleet_is_never_cheaper_than_choosing_anew(asked):
    found = allocate(asked)
    if isinstance(found, Infeasible):
        return
    fleet = found.replicas[:1]
    kept = extended(replace(asked, fleet=fleet))
    assert kept is not None
    assert all(kept.of(each) >= count for each, count in fleet)
    assert kept.objective >= found.objective - CENT
    assert kept.bound <= found.objective + CENT


def test_the_same_loads_in_many_replicas():
    # 1,000 requests/s on replicas of one: no tolerance adds up to a replica.
    assert counts(allocate(problem({SMALL: 1000.0}, [offer("l4", 1.0)], ABLE, limits=FREE))) == {key("l4"): 1000}
