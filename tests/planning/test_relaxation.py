"""Relaxations: each works, one step less does not, and together asks for less than alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from medley.core.accelerators import Market, NodeOffer
from medley.core.service import Budget, Limits, SpotPolicy, SpotUse
from medley.core.workload import Slo
from medley.planning.relaxation import Relaxation, relaxations
from medley.planning.whatif import Case, plan_of
from medley.testing.builders import accelerator_class, profile, service

CASE = Case(service(), (accelerator_class("l4"),), (profile("l4"),))


def changed(case: Case = CASE, **fields) -> Case:
    return case._replace(service=replace(case.service, **fields))


def found(case: Case) -> dict[str, Relaxation]:
    assert plan_of(case) is None
    return {each.change: each for each in relaxations(case)}


def test_a_budget_that_is_too_small():
    # Two l4 are 0.80; one is 0.40 and serves 1.7 requests/s.
    case = changed(limits=Limits(max_usd_per_hour=Decimal("0.50")))
    assert found(case) == {
        "maxUSDPerHour 0.80 instead of 0.50": Relaxation(
            ("spec.limits.maxUSDPerHour",),
            "maxUSDPerHour 0.80 instead of 0.50",
            pytest.approx(0.80),
            pytest.approx(0.6),
        ),
        "1.68 requests/s instead of 3": Relaxation(
            ("spec.workload.requestsPerSecond",), "1.68 requests/s instead of 3", pytest.approx(0.40), 0.44
        ),
    }


def test_a_budget_of_several_that_is_too_small():
    case = changed(limits=Limits(budget="team"))._replace(budgets=(Budget("team", Decimal("0.50")),))
    said = "Budget team of 0.80 USD/h instead of 0.50"
    assert found(case)[said] == Relaxation(
        ("Budget team: maxUSDPerHour",), said, pytest.approx(0.80), pytest.approx(0.6)
    )


def test_too_few_replicas():
    case = changed(limits=Limits(max_replicas=1))
    replicas, demand = found(case).values()
    assert (replicas.change, replicas.usd_per_hour, replicas.moved) == ("maxReplicas 2 instead of 1", 0.8, 1.0)
    assert demand.fields == ("spec.workload.requestsPerSecond",)


def test_a_promise_that_is_too_tight_names_the_promise_that_can_be_kept():
    # The profile has 50 ms at every rate.
    case = changed(slo=Slo(99, timedelta(seconds=2), timedelta(milliseconds=40)))
    assert found(case) == {
        "tpot 50ms instead of 40ms": Relaxation(("spec.slo.tpot",), "tpot 50ms instead of 40ms", 0.8, 0.25)
    }


def test_a_floor_without_on_demand_capacity():
    spot_only = accelerator_class(offers=(NodeOffer(Market.SPOT, "a", 0.4, None),))
    case = changed(CASE._replace(classes=(spot_only,)), spot=SpotPolicy(on_demand_floor=0.2))
    assert found(case) == {
        "spot.onDemandFloor 0% instead of 20%": Relaxation(
            ("spec.spot.onDemandFloor",), "spot.onDemandFloor 0% instead of 20%", 0.8, 1.0
        )
    }


def test_caps_and_what_is_forbidden():
    case = changed(
        CASE._replace(classes=(accelerator_class("l4", max_nodes=0), accelerator_class("h100")), profiles=(profile("l4"), profile("h100"))),
        classes=("l4",),
        spot=SpotPolicy(use=SpotUse.NEVER),
    )  # fmt: skip
    relaxed = found(case)
    # One node more in each of two zones is two nodes, which is enough.
    assert {change: (each.usd_per_hour, each.moved) for change, each in relaxed.items()} == {
        "one node more of l4, on-demand, in every zone": (pytest.approx(2.0), 1.0),
        "class h100 allowed too": (pytest.approx(9.0), None),
    }


def test_together_asks_for_less_than_alone():
    # Three replicas and 1.20 USD/h are needed: the budget alone is not enough, nor are the replicas.
    case = changed(
        forecast=replace(service().forecast, requests_per_second=5.0),
        limits=Limits(max_usd_per_hour=Decimal("1.00"), max_replicas=2),
    )
    *_, together = found(case).values()
    assert together.fields == ("spec.limits.maxUSDPerHour", "spec.limits.maxReplicas")
    assert (together.usd_per_hour, together.moved) == (pytest.approx(1.20), 0.5)
    assert together.change == "maxUSDPerHour 1.20 instead of 1.00 and maxReplicas 3 instead of 2"


def test_nothing_helps_where_no_size_was_measured():
    assert found(CASE._replace(profiles=())) == {}
