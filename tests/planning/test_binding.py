"""Bounds: what a plan uses of each, and which would be broken by one replica more."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from medley.core.accelerators import Market, NodeOffer
from medley.core.service import Limits, SpotPolicy
from medley.planning.binding import BoundState, bounds
from medley.planning.question import ask
from medley.planning.whatif import Case, plan_of
from medley.testing.builders import accelerator_class, profile, service


def test_a_floor_that_is_kept_with_another_spot_replica_does_not_bind():
    asked = replace(service(), spot=SpotPolicy(on_demand_floor=0.2), limits=Limits(max_replicas=20, min_replicas=4))
    case = Case(asked, (accelerator_class("l4"),), (profile("l4"),))
    # One of four is on demand, and one of five would do.
    assert bounds(ask(*case).problem, plan_of(case)) == (
        BoundState("spec.limits.minReplicas", "at least 4", "4", binds=True),
        BoundState("spec.limits.maxReplicas", "20", "4", binds=False),
        BoundState("spec.spot.onDemandFloor", "at least 1 of 4 (20%)", "1", binds=False),
    )


def test_every_bound_is_told_and_those_that_bind_come_first():
    capped = accelerator_class(offers=(NodeOffer(Market.SPOT, "a", 0.4, 1), NodeOffer(Market.ON_DEMAND, "a", 1.0, 8)))
    asked = replace(
        service(),
        spot=SpotPolicy(on_demand_floor=0.5),
        limits=Limits(max_usd_per_hour=Decimal("1.50"), max_replicas=20, min_replicas=2),
    )
    case = Case(asked, (capped,), (profile("l4"),))
    assert bounds(ask(*case).problem, plan_of(case)) == (
        BoundState("spec.limits.maxUSDPerHour", "1.50", "1.40", binds=True),
        BoundState("spec.limits.minReplicas", "at least 2", "2", binds=True),
        BoundState("spec.spot.onDemandFloor", "at least 1 of 2 (50%)", "1", binds=True),
        BoundState("nodes of l4, spot, a", "1", "1", binds=True),
        BoundState("spec.limits.maxReplicas", "20", "2", binds=False),
        BoundState("nodes of l4, on-demand, a", "8", "1", binds=False),
    )
