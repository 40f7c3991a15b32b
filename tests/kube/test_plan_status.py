"""What `status.plan` says of a proposal: the whole of it, and what is rounded, left out and named."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.api.llmservice_status import Infeasible, NotUsed, PlannedOffering, PlanStatus, Routing, RoutingShare
from medley.core.accelerators import Market, Shape
from medley.core.service import Limits
from medley.core.workload import Bucket
from medley.kube.plan_status import plan_status
from medley.planning.problem import Binding, Bound, Share
from medley.planning.proposal import propose
from medley.testing.builders import NOW, accelerator_class, observed, offering, profile, service, waiting

SPOT_A = offering(Market.SPOT, "a")
H100_IS_DEARER = "dearer: from 4.00 USD/h a node; what is used serves as much for 80% less"
ALL = (RoutingShare(input=0, output=0, shape="l4", share=1.0),)


def routing(shares: tuple[RoutingShare, ...]) -> Routing:
    return Routing(input_edges=(1000,), output_edges=(1000,), shares=shares)


def test_a_plan():
    assert plan_status(propose(observed(), NOW), {SPOT_A: 1}) == PlanStatus(
        offerings=(
            PlannedOffering(shape="l4", market=Market.SPOT, zone="a", replicas=2, ready=1, usd_per_hour="0.80"),
        ),
        routing=routing(ALL),
        usd_per_hour="0.80",
        on_demand_usd_per_hour="2.00",
        saved_percent="60%",
        gap="0.00%",
        not_used=(
            NotUsed(accelerator_class="h100", reason=H100_IS_DEARER),
            NotUsed(
                accelerator_class="l4",
                market=Market.ON_DEMAND,
                reason="dearer: 1.00 USD/h a node; what is used serves as much for 0.40",
            ),
        ),
    )


def test_what_cannot_be_met_saves_nothing_and_every_bound_is_named():
    tight = Limits(max_usd_per_hour=Decimal("0.50"), max_replicas=1)
    seen = observed(service=service(limits=tight), classes=(accelerator_class("l4"),), profiles=(profile("l4"),))
    assert plan_status(propose(seen, NOW), {}) == PlanStatus(
        offerings=(
            PlannedOffering(shape="l4", market=Market.SPOT, zone="a", replicas=1, ready=0, usd_per_hour="0.40"),
        ),
        routing=routing(ALL),
        usd_per_hour="0.40",
        on_demand_usd_per_hour="",
        saved_percent="",
        gap="0.00%",
        not_used=(
            NotUsed(
                accelerator_class="l4",
                market=Market.ON_DEMAND,
                reason="no gain: would serve no more of the demand within the limits",
            ),
        ),
        infeasible=Infeasible(
            unmet_requests_per_second="1.3",
            binding="spec.limits.maxUSDPerHour, spec.limits.maxReplicas",
            remedy="0.50 USD/h is too little: the demand needs 0.80 USD/h; raise the budget "
            "(together with spec.limits.maxReplicas); "
            "1 replicas are too few: the demand needs 2; raise maxReplicas (together with spec.limits.maxUSDPerHour)",
        ),
    )


def test_on_demand_capacity_that_would_do_is_priced_and_no_saving_shown_beside_a_part_of_the_demand():
    poor = service(limits=Limits(max_usd_per_hour=Decimal("0.50")))
    said = plan_status(propose(observed(service=poor), NOW), {})
    assert (said.usd_per_hour, said.on_demand_usd_per_hour, said.saved_percent) == ("0.40", "2.00", "")


def test_a_bound_that_binds_with_two_others_is_named_once():
    proposal = propose(observed(service=service(limits=Limits(max_replicas=1))), NOW)
    bindings = tuple(Binding(bound, bound.name) for bound in (Bound.CAPS, Bound.BUDGET, Bound.CAPS, Bound.REPLICAS))
    found = propose(observed(service=service(limits=Limits(max_usd_per_hour=Decimal("0.5")))), NOW).infeasible
    assert found is not None
    said = plan_status(replace(proposal, infeasible=replace(found, bindings=bindings)), {}).infeasible
    assert said == Infeasible(
        unmet_requests_per_second="1.3",
        binding="AcceleratorClass.spec.zones, spec.limits.maxUSDPerHour, spec.limits.maxReplicas",
        remedy="CAPS; BUDGET; CAPS; REPLICAS",
    )


def test_places_that_wait_for_capacity_are_wanted_and_in_the_price():
    only = accelerator_class("l4")
    only = replace(only, offers=tuple(each for each in only.offers if (each.market, each.zone) == ("spot", "a")))
    stuck = tuple(waiting(n=n, since=NOW - timedelta(minutes=2)) for n in range(2))
    said = plan_status(propose(observed(classes=(only,), profiles=(profile("l4"),), replicas=stuck), NOW), {})
    assert (said.offerings, said.usd_per_hour, said.saved_percent) == (
        (PlannedOffering(shape="l4", market=Market.SPOT, zone="a", replicas=2, ready=0, usd_per_hour="0.80"),),
        "0.80",
        "",
    )


def shown(*shares: float) -> list[tuple[str, float]]:
    """Return how shares of one arrival class among shapes a, b, ... are shown."""
    proposal = propose(observed(), NOW)
    exact = tuple(Share(Bucket(0, 0), Shape(chr(ord("a") + n)), share) for n, share in enumerate(shares))
    said = plan_status(replace(proposal, allocation=replace(proposal.allocation, shares=exact)), {})
    assert said.routing is not None
    return [(each.shape, each.share) for each in said.routing.shares]


@pytest.mark.parametrize(
    ("exact", "expected"),
    [
        pytest.param((0.75, 0.25), [("a", 0.75), ("b", 0.25)], id="as they are"),
        pytest.param((1 / 3, 1 / 3, 1 / 3), [("a", 0.3334), ("b", 0.3333), ("c", 0.3333)], id="thirds"),
        pytest.param((1 / 3 - 1e-12, 1 / 3 + 1e-12, 1 / 3), [("a", 0.3334), ("b", 0.3333), ("c", 0.3333)], id="noise"),
        pytest.param((0.00002, 0.99998), [("b", 1.0)], id="one that rounds to 0"),
        pytest.param((0.00005, 0.99995), [("a", 0.0001), ("b", 0.9999)], id="one that just does not"),
        pytest.param((0.57, 0.43), [("a", 0.57), ("b", 0.43)], id="5699.999"),
    ],
)
def test_shares_are_shown_with_four_decimals(exact, expected):
    assert shown(*exact) == expected


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6))
def test_the_shares_of_a_class_add_up_to_1_and_none_is_0(weights):
    found = shown(*(weight / sum(weights) for weight in weights))
    assert sum(round(share * 10_000) for _, share in found) == 10_000
    exact = {chr(ord("a") + n): weight / sum(weights) for n, weight in enumerate(weights)}
    assert all(share > 0 and abs(share - exact[shape]) < 1.01e-4 for shape, share in found)
