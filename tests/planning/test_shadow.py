"""What bounds and demand cost at the margin, against what a little more of them saves."""

from __future__ import annotations

import math

import pytest

from medley.core.accelerators import Market
from medley.core.service import Limits, SpotPolicy
from medley.planning.problem import LossScenario, Quota
from medley.planning.programme import Scenario
from medley.planning.shadow import ShadowPrices, shadow_prices
from medley.testing.allocation import FREE, LARGE, SMALL, key, offer, problem, rates

SPOT = Market.SPOT


def test_a_request_costs_its_part_of_a_replica():
    asked = problem(
        {SMALL: 10.0}, [offer("l4", 0.7), offer("a100", 3.67)], [rates("l4", {SMALL: 2.0}), rates("a100", {SMALL: 5.0})]
    )
    found = shadow_prices(asked)
    assert found.usd_per_hour == pytest.approx(3.5)
    assert found.bounds == ()
    assert dict(found.requests)[SMALL] == pytest.approx(0.35)
    # 5 requests/s of an a100 are worth 1.75 USD.
    assert dict(found.offerings) == {key("a100"): pytest.approx(3.67 - 1.75), key("l4"): 0.0}


def test_a_quota_is_worth_what_the_next_best_costs_more():
    asked = problem(
        {SMALL: 10.0},
        [offer("l4", 1.0), offer("l4", 0.4, SPOT)],
        [rates("l4", {SMALL: 1.0})],
    )
    capped = type(asked)(
        asked.demand, asked.offerings, asked.throughput, limits=FREE, utilisation=1.0, quotas=(Quota(4, market=SPOT),)
    )
    found = shadow_prices(capped)
    assert found == ShadowPrices(
        usd_per_hour=pytest.approx(4 * 0.4 + 6 * 1.0),
        bounds=(("GPUs of spot", pytest.approx(0.6)),),
        requests=((SMALL, pytest.approx(1.0)),),
        losses=(),
        offerings=((key("l4"), 0.0), (key("l4", SPOT), 0.0)),
    )


def test_surviving_a_loss_has_a_price():
    loss = LossScenario(market=SPOT, survive=0.5)
    asked = problem(
        {SMALL: 10.0},
        [offer("l4", 1.0), offer("l4", 0.4, SPOT)],
        [rates("l4", {SMALL: 1.0})],
    )
    hedged = type(asked)(
        asked.demand, asked.offerings, asked.throughput, limits=FREE, utilisation=1.0, scenarios=(loss,)
    )
    found = shadow_prices(hedged)
    assert found.usd_per_hour == pytest.approx(5 * 1.0 + 5 * 0.4)
    # All of the demand instead of half of it: 5 replicas go from spot to on-demand.
    assert found.losses == ((Scenario(loss, 0.5), pytest.approx(6.0)),)


def test_prices_add_up_to_the_cost():
    asked = problem(
        {SMALL: 10.0, LARGE: 3.0},
        [offer("l4", 0.7, at_most=6), offer("a100", 3.67)],
        [rates("l4", {SMALL: 2.0, LARGE: 0.3}), rates("a100", {SMALL: 9.0, LARGE: 4.0})],
    )
    found = shadow_prices(asked)
    demand = dict(asked.demand.requests_per_second)
    worth = math.fsum(demand[bucket] * price for bucket, price in found.requests)
    assert worth - 6 * dict(found.bounds).get(f"{key('l4')}", 0.0) == pytest.approx(found.usd_per_hour)


def test_without_a_solution_there_are_no_prices():
    assert shadow_prices(problem({SMALL: 1.0}, [], [rates("l4", {SMALL: 1.0})])) is None
    short = problem({SMALL: 9.0}, [offer("l4", 1.0)], [rates("l4", {SMALL: 1.0})], limits=Limits(max_replicas=2))
    assert shadow_prices(short) is None
    assert shadow_prices(problem({SMALL: 1.0}, [offer("l4", 1.0, SPOT)], [rates("l4", {SMALL: 1.0})],
                                 spot=SpotPolicy(on_demand_floor=0.5))) is None  # fmt: skip
