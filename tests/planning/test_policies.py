"""What a service and a class may bound beyond replicas and money, in the plans that `medley plan` and the operator make."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from medley.core.accelerators import Market, NodeOffer
from medley.core.service import (
    AllocationMode,
    Forecast,
    GpuQuota,
    Histogram,
    Limits,
    OperatingMode,
    RoutingKnowledge,
    SpotPolicy,
    Spread,
)
from medley.core.workload import Bucket, SizeGrid
from medley.planning import relaxation
from medley.planning.explain import NotUsed
from medley.planning.fleet import Neighbour
from medley.planning.offerings import Why
from medley.planning.problem import Binding, Bound, Share
from medley.planning.proposal import propose
from medley.planning.question import ask
from medley.planning.terms import Cap, LossScenario
from medley.planning.whatif import Case, plan_of
from medley.testing.builders import GRID, NOW, accelerator_class, observed, offering, profile, service

L4, H100 = accelerator_class(), accelerator_class("h100")
PROFILES = (profile(), profile("h100"))
ON_DEMAND, SPOT = Market.ON_DEMAND, Market.SPOT


def proposed(classes=(L4, H100), neighbours=(), **changes):
    seen = observed(service=service(**changes), classes=classes, profiles=PROFILES, neighbours=neighbours)
    return propose(seen, NOW)


def test_without_bounds_the_plan_is_two_l4_on_spot_in_one_zone():
    assert proposed().wanted == {offering(zone="a"): 2}


@pytest.mark.parametrize(
    ("quotas", "wanted"),
    [
        pytest.param((GpuQuota(1, zone="a"),), {offering(zone="a"): 1, offering(zone="b"): 1}, id="of a zone"),
        pytest.param((GpuQuota(1, market=SPOT),), {offering(zone="a"): 1, offering(ON_DEMAND, "a"): 1}, id="of a market"),
        pytest.param((GpuQuota(1, "l4"),), {offering(zone="a", name="h100"): 1}, id="of a class"),
        pytest.param(
            (GpuQuota(0, "l4", SPOT), GpuQuota(1, "l4", ON_DEMAND, "a")),
            {offering(ON_DEMAND, "a"): 1, offering(ON_DEMAND, "b"): 1},
            id="none of one market, and one in a zone of another",
        ),
    ],
)  # fmt: skip
def test_a_service_keeps_to_its_quotas(quotas, wanted):
    assert proposed(limits=Limits(gpu_quotas=quotas)).wanted == wanted


def test_a_quota_that_is_too_small_names_its_field():
    found = proposed(limits=Limits(gpu_quotas=(GpuQuota(1),)), classes=(L4,)).infeasible
    message = "exhausted: spec.limits.gpuQuotas (1); raise the quota, or allow more classes or zones"
    assert found.bindings == (Binding(Bound.CAPS, message),)


def test_a_service_s_own_quota_is_no_affair_of_its_neighbours():
    other = replace(service(), name="other")
    held = Neighbour("default/other", other, ((offering(zone="a"), 2),))
    assert proposed(limits=Limits(gpu_quotas=(GpuQuota(2, "l4"),)), neighbours=(held,)).wanted == {
        offering(zone="a"): 2
    }


def test_the_quota_of_a_class_counts_the_gpus_of_a_replica_s_part_of_its_node():
    four = accelerator_class(gpus_per_node=4, gpu_quotas=((SPOT, 3),))
    shapes = [replace(profile().shape, tensor_parallel=gpus) for gpus in (1, 3)]
    problem = ask(service(), [four], [replace(profile(), shape=shape) for shape in shapes]).problem
    keys = [replace(offering(zone=zone), shape=shape) for zone in "ab" for shape in shapes]
    # A replica on three of four GPUs has the node to itself.
    assert problem.caps == (Cap("GPUs of l4, spot", 3, tuple(zip(keys, (1.0, 4.0) * 2, strict=True))),)


def test_services_share_the_quota_of_a_class():
    scarce = accelerator_class(gpu_quotas=((SPOT, 3), (ON_DEMAND, 0)))
    held = Neighbour("default/other", replace(service(), name="other"), ((offering(zone="a"), 2),))
    found = proposed(classes=(scarce,), neighbours=(held,))
    assert found.wanted == {offering(zone="a"): 1}
    names = "GPUs of l4, on-demand (0), GPUs of l4, spot, of 3 default/other takes 2 (1)"
    message = f"exhausted: {names}; raise the quota, or allow more classes or zones"
    assert found.infeasible.bindings == (Binding(Bound.CAPS, message),)


@pytest.mark.parametrize(
    ("spread", "wanted"),
    [
        pytest.param(Spread(2), {offering(zone="a"): 1, offering(zone="b"): 1}, id="in two zones"),
        pytest.param(Spread(1, 0.5), {offering(zone="a"): 1, offering(zone="b"): 1}, id="at most half in one"),
    ],
)
def test_replicas_are_spread(spread, wanted):
    assert proposed(spread=spread).wanted == wanted


def test_zones_that_are_not_there_are_asked_for_in_the_spread_s_name():
    found = proposed(spread=Spread(3)).infeasible
    message = (
        "at least 3 zones with at most 100% of the replicas in one are not to be had; "
        "lower the number, raise the share, or allow more zones"
    )
    assert found.bindings == (Binding(Bound.SPREAD, message),)
    assert found.message == f"spec.spread: {message}"


@pytest.mark.parametrize(
    ("spot", "losses"),
    [
        pytest.param(SpotPolicy(survive_zone_loss=0.8), {LossScenario(zone="a"): 0.8, LossScenario(zone="b"): 0.8}, id="zone"),
        pytest.param(
            SpotPolicy(survive_class_loss=0.5),
            {LossScenario(None, "h100", survive=0.5): 0.5, LossScenario(None, "l4", survive=0.5): 0.5},
            id="class",
        ),
        pytest.param(
            SpotPolicy(survive_class_zone_loss=0.9),
            {LossScenario(zone, name, survive=0.9): 0.9 for name in ("h100", "l4") for zone in "ab"},
            id="class in a zone",
        ),
        pytest.param(SpotPolicy(), {}, id="none"),
    ],
)  # fmt: skip
def test_the_losses_that_a_service_survives(spot, losses):
    problem = ask(service(spot=spot), [L4, H100], PROFILES).problem
    assert dict(problem.losses) == losses


def test_the_loss_of_a_class_is_hedged_by_another_market_or_class():
    # Half of 3 requests/s is 1.5, one on-demand l4 at 85 % of 2.
    assert proposed(classes=(L4,), spot=SpotPolicy(survive_class_loss=0.5)).wanted == {
        offering(zone="a"): 1,
        offering(ON_DEMAND, "a"): 1,
    }
    assert proposed(classes=(L4,), spot=SpotPolicy(survive_class_zone_loss=0.5)).wanted == {
        offering(zone="a"): 1,
        offering(zone="b"): 1,
    }


def test_a_loss_that_cannot_be_survived_names_its_field():
    one_zone = accelerator_class(offers=(NodeOffer(SPOT, "a", 0.4, None),))
    found = proposed(classes=(one_zone,), spot=SpotPolicy(survive_class_loss=0.5)).infeasible
    message = (
        "50% of the demand would not survive the loss of a class's spot; "
        "lower it, or allow more zones or on-demand capacity"
    )
    assert found.bindings == (Binding(Bound.ZONE_LOSS, message, "spec.spot.surviveClassLoss"),)
    assert found.message == f"spec.spot.surviveClassLoss: {message}"


def test_what_would_have_to_give_of_quotas():
    case = Case(
        service(limits=Limits(gpu_quotas=(GpuQuota(1),))), (accelerator_class(gpu_quotas=((SPOT, 0),)),), PROFILES
    )
    assert plan_of(case) is None
    found = {each.fields: each.change for each in relaxation.relaxations(case)}
    assert found["spec.limits.gpuQuotas[0]",] == "gpuQuotas[0] of 2 GPUs instead of 1"
    dear = case._replace(service=service(limits=Limits(max_usd_per_hour=Decimal(1))))
    found = {each.fields: each.change for each in relaxation.relaxations(dear)}
    assert found["AcceleratorClass l4: gpuQuota",] == "2 GPUs of l4, spot, instead of 0"


class TestAsPublished:
    """`allocation: Melange`: golden values of the paper's programme by hand, no bound of ours in them."""

    GRID = SizeGrid((1000,), (1000,))

    def test_replicas_are_full_and_limits_are_not_kept(self):
        # 3 requests/s at 2 per l4: two of them, or one h100 at ten times the price.
        found = proposed(
            allocation=AllocationMode.MELANGE,
            mode=OperatingMode.PLAN,
            limits=Limits(max_replicas=1),
            spot=SpotPolicy(on_demand_floor=1.0),
        )
        assert found.wanted == {offering(zone="a"): 2}
        assert found.allocation.shares == (Share(Bucket(0, 0), offering().shape, 1.0),)
        assert (found.usd_per_hour, found.on_demand_usd_per_hour, found.infeasible) == (0.8, 2.0, None)
        assert found.question.routing is RoutingKnowledge.ORACLE
        message = "the published programme's optimum does without"
        assert found.not_used == (NotUsed("h100", None, None, Why.DEARER, message),)

    def test_four_requests_per_second_fill_two_replicas_where_shares_buy_three(self):
        forecast = Forecast(4.0, Histogram(GRID, ((1.0,),)))
        assert proposed(forecast=forecast).wanted == {offering(zone="a"): 3}
        assert proposed(forecast=forecast, allocation=AllocationMode.MELANGE).wanted == {offering(zone="a"): 2}

    def test_sizes_that_nothing_serves(self):
        slow = [replace(profile(), points=(replace(profile().points[0], input_tokens=100),))]
        found = propose(
            observed(service=service(allocation=AllocationMode.MELANGE), classes=(L4,), profiles=tuple(slow)), NOW
        )
        assert (found.wanted, found.infeasible.unmet) == ({}, ((Bucket(0, 0), 3.0),))
