"""What-ifs: each is the cheapest plan of the changed service, and looser never costs more."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.accelerators import Market, NodeOffer
from medley.core.service import Limits, SpotPolicy, SpotUse
from medley.core.workload import Slo
from medley.planning.allocator import cheapest
from medley.planning.question import ask
from medley.planning.whatif import Case, WhatIf, plan_of, what_ifs, with_fraction, with_latency, with_rate
from medley.testing.builders import accelerator_class, profile, service

# One l4 serves 2 requests/s, 85 % of which is planned for, and costs 0.40 on spot and 1.00 on demand.
CASE = Case(service(), (accelerator_class("l4"), accelerator_class("h100")), (profile("l4"), profile("h100")))


def changed(case: Case = CASE, **fields) -> Case:
    return case._replace(service=replace(case.service, **fields))


def asked(case: Case) -> dict[str, WhatIf]:
    plan = plan_of(case)
    assert plan is not None
    return {each.change: each for each in what_ifs(case, plan)}


def test_the_plan_of_a_case_is_the_allocators():
    assert plan_of(CASE) == cheapest(ask(*CASE).problem)
    assert plan_of(CASE).usd_per_hour == pytest.approx(0.80)


def test_every_change_is_priced():
    # 3 requests/s need two l4 (3.4); at 3.3 still two, at 2.7 too.
    found = asked(CASE)
    assert {change: (each.usd_per_hour, each.saves_usd_per_hour) for change, each in found.items()} == {
        "TPOT 10% looser: 110ms": (pytest.approx(0.80), 0.0),
        "TPOT 10% tighter: 90ms": (pytest.approx(0.80), 0.0),
        "TTFT 10% looser: 2200ms": (pytest.approx(0.80), 0.0),
        "TTFT 10% tighter: 1800ms": (pytest.approx(0.80), 0.0),
        "10% more traffic: 3.3 requests/s": (pytest.approx(0.80), 0.0),
        "10% less traffic: 2.7 requests/s": (pytest.approx(0.80), 0.0),
        "lengths of answers known on arrival (routing Oracle)": (pytest.approx(0.80), 0.0),
        "budget 10% higher: 44.00 USD/h": (pytest.approx(0.80), 0.0),
        "one more zone, at each class's lowest prices": (pytest.approx(0.80), 0.0),
    }


def test_traffic_that_needs_another_replica_costs_it():
    found = asked(changed(forecast=replace(service().forecast, requests_per_second=3.2)))
    assert found["10% more traffic: 3.52 requests/s"].saves_usd_per_hour == pytest.approx(-0.40)


def test_a_promise_that_nothing_keeps_has_no_price():
    found = asked(changed(slo=Slo(99, timedelta(seconds=2), timedelta(milliseconds=52))))
    assert found["TPOT 10% tighter: 46800us"] == WhatIf("TPOT 10% tighter: 46800us", None, None)


def test_a_lower_floor_saves_what_on_demand_costs_more():
    # Two replicas, of which half, so one, is on demand; 40 % of two is one too.
    found = asked(changed(spot=SpotPolicy(on_demand_floor=0.5)))
    assert found["spot.onDemandFloor 40% instead of 50%"].saves_usd_per_hour == 0.0
    found = asked(changed(spot=SpotPolicy(on_demand_floor=0.1)))
    assert found["spot.onDemandFloor 0% instead of 10%"].saves_usd_per_hour == pytest.approx(0.60)


def test_what_is_forbidden_is_priced_too():
    found = asked(changed(spot=SpotPolicy(use=SpotUse.NEVER), classes=("h100",), zones=("a",)))
    assert {change: each.saves_usd_per_hour for change, each in found.items() if "allowed" in change or "Never" in change} == {
        "spot.policy Prefer instead of Never": pytest.approx(5.0),
        "class l4 allowed too": pytest.approx(7.0),
        "zone b allowed too": 0.0,
    }  # fmt: skip


def test_bounds_that_bind_are_moved_by_one():
    one_node = accelerator_class(
        offers=(NodeOffer(Market.SPOT, "a", 0.4, 1), NodeOffer(Market.ON_DEMAND, "a", 1.0, None))
    )
    found = asked(changed(CASE._replace(classes=(one_node,)), limits=Limits(max_replicas=2, min_replicas=2)))
    assert found["one node more of l4, spot, a"].saves_usd_per_hour == pytest.approx(0.60)
    assert found["one replica more: maxReplicas 3"].saves_usd_per_hour == 0.0
    assert found["one replica less: minReplicas 1"].saves_usd_per_hour == 0.0


def test_one_more_zone_helps_where_zones_are_lost():
    # With two zones, the loss of one leaves on-demand and half of the spot; with three, two thirds.
    found = asked(changed(spot=SpotPolicy(survive_zone_loss=1.0), limits=Limits(max_usd_per_hour=Decimal(40))))
    saved = found["one more zone, at each class's lowest prices"].saves_usd_per_hour
    # Two l4 in each of two zones (1.60) against one in each of three (1.20).
    assert saved == pytest.approx(0.40)


def test_contradictory_limits_have_no_plan():
    assert plan_of(changed(limits=Limits(max_replicas=1, min_replicas=2))) is None


@settings(max_examples=12)
@given(
    st.floats(0.2, 30.0),
    st.sampled_from([0.0, 0.3, 0.5]),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([60, 90, 150]),
)
def test_looser_never_costs_more(rate, floor, loss, tpot_ms):
    case = changed(
        forecast=replace(service().forecast, requests_per_second=rate),
        spot=SpotPolicy(on_demand_floor=floor, survive_zone_loss=loss),
        slo=Slo(99, timedelta(seconds=2), timedelta(milliseconds=tpot_ms)),
        limits=Limits(max_replicas=1000),
    )
    usd = plan_of(case).usd_per_hour
    looser = (
        with_rate(case.service, rate * 0.8),
        with_fraction(case.service, "onDemandFloor", floor / 2),
        with_fraction(case.service, "surviveZoneLoss", loss / 2),
        with_latency(case.service, "tpot", timedelta(milliseconds=2 * tpot_ms)),
    )
    for each in looser:
        # Plans of equal cost may differ by what the programme counts as equal.
        assert plan_of(case._replace(service=each)).usd_per_hour <= usd * (1 + 1e-3) + 1e-6
