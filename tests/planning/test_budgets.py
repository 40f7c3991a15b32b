"""What one pass says and does where services share a Budget: who is served first, what is left, what is not known."""

from dataclasses import replace
from decimal import Decimal

import pytest

from medley.core.accelerators import Market
from medley.core.names import Condition, Reason
from medley.core.service import Budget, Limits, OperatingMode
from medley.planning.actions import EnsureSecrets, LaunchEngine
from medley.planning.fleet import Neighbour, Truth
from medley.planning.reconcile import Plan, plan
from medley.testing.builders import NOW, accelerator_class, observed, offering, profile, service

SPOT_A = offering(Market.SPOT, "a")
KEPT = (EnsureSecrets(),)  # what serves goes on, and nothing else is done


def said(found: Plan, condition: Condition) -> tuple[Truth, Reason, str]:
    assert found.status is not None
    state = next(each for each in found.status.conditions if each.type is condition)
    return state.status, state.reason, state.message


def launched(found: Plan) -> list[LaunchEngine]:
    return [action for action in found.actions if isinstance(action, LaunchEngine)]


def on_budget(name: str = "chat", budget: str = "team", **changes):
    return service(name=name, limits=Limits(max_replicas=20, min_replicas=1, budget=budget), **changes)


def sharing(usd: str, *neighbours: Neighbour, **changes):
    """Return what is seen of chat (0.80 USD/h) on a Budget."""
    seen = observed(service=on_budget(**changes), neighbours=neighbours, budgets=(Budget("team", Decimal(usd)),))
    return replace(seen, classes=(accelerator_class("l4"),), profiles=(profile("l4"),))


OTHER = Neighbour("default/other", on_budget("other"), budget="team")


def test_services_that_a_budget_pays_for_are_planned_as_if_alone():
    assert plan(sharing("1.60", OTHER), NOW).actions == plan(sharing("9"), NOW).actions


def test_who_comes_second_is_told_what_is_left_of_the_budget_and_who_takes_the_rest():
    found = plan(sharing("1.20", replace(OTHER, service=on_budget("other", priority=1))), NOW)
    assert len(launched(found)) == 1
    assert said(found, Condition.PLAN_FEASIBLE) == (
        Truth.FALSE,
        Reason.BUDGET_EXHAUSTED,
        (
            "spec.limits.budget: 0.40 USD/h left of Budget team (of 1.20 default/other takes 0.80) is too little: "
            "the demand needs 0.80 USD/h; raise its maxUSDPerHour, or spend less of it"
        ),
    )


def test_who_comes_first_is_met_from_the_same_budget():
    found = plan(sharing("1.20", OTHER, priority=1), NOW)
    assert (len(launched(found)), said(found, Condition.PLAN_FEASIBLE)[0]) == (2, Truth.TRUE)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Neighbour("default/other", None, ((SPOT_A, 2),), budget="team"), id="being deleted"),
        pytest.param(
            Neighbour("default/other", on_budget("other", mode=OperatingMode.PLAN), ((SPOT_A, 2),), budget="team"),
            id="planned only",
        ),
    ],
)
def test_what_others_hold_without_a_plan_is_paid_for(other):
    found = plan(sharing("1.20", other), NOW)
    message = said(found, Condition.PLAN_FEASIBLE)[2]
    assert "0.40 USD/h left of Budget team (of 1.20 default/other takes 0.80)" in message


def test_a_price_that_nobody_knows_is_not_zero():
    sold_before = Neighbour("default/other", None, ((offering(Market.SPOT, "gone"), 1),), budget="team")
    found = plan(sharing("9", sold_before), NOW)
    assert found.actions == KEPT
    assert said(found, Condition.PLAN_FEASIBLE) == (
        Truth.FALSE,
        Reason.INVALID_SPEC,
        (
            "Budget team: what is left of it is not known: default/other holds replicas of l4/spot/gone, whose price no "
            "AcceleratorClass names; write the price, or delete these replicas"
        ),
    )
    # Whose money it is not need not know.
    assert len(launched(plan(replace(sharing("9", sold_before), service=service()), NOW))) == 2


def test_a_budget_that_is_not_there_is_refused_and_changes_nothing():
    found = plan(replace(sharing("9"), service=on_budget(budget="tema")), NOW)
    assert found.actions == KEPT
    assert said(found, Condition.PLAN_FEASIBLE) == (
        Truth.FALSE,
        Reason.UNKNOWN_BUDGET,
        "spec.limits.budget: no Budget named tema; there are: team; write it, or remove the field",
    )


def test_the_counterfactual_is_not_bound_by_the_budget():
    status = plan(sharing("0.80"), NOW).status
    assert status is not None
    assert status.proposal is not None
    assert status.proposal.on_demand_usd_per_hour == 2.0
