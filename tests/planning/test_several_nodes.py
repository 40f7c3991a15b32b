"""Replicas that span several nodes: what they take, cost and risk, and that no engine is launched on them."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from itertools import product

import pytest

from medley.core.accelerators import Market, NodeOffer, Offering, OfferingKey, Shape
from medley.core.names import Condition
from medley.core.service import Forecast, GpuQuota, Histogram, Limits, OperatingMode, SpotPolicy
from medley.planning.actions import EnsureNodePool, LaunchEngine
from medley.planning.fleet import RouterState
from medley.planning.offerings import OutOfQuestion, Why, usd_per_replica_hour
from medley.planning.problem import Allocation, Infeasible
from medley.planning.proposal import propose
from medley.planning.question import ask
from medley.planning.reconcile import plan
from medley.planning.terms import Cap
from medley.planning.whatif import Case, plan_of, what_ifs
from medley.testing.builders import GRID, NOW, accelerator_class, observed, profile, service

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
COLD_START = timedelta(minutes=5)
REFUSAL = (
    "l4-pp2 needs 2 nodes; engines run on one node so far: use spec.mode Plan to see what it would cost, "
    "or a class with more GPUs per node"
)


def shaped(tensor: int = 1, pipeline: int = 1, requests_per_second: float = 4.0):
    """Return the profile of a shape of l4."""
    default, shape = profile(), Shape("l4", tensor, pipeline)
    point = replace(default.points[0], requests_per_second=requests_per_second)
    return replace(default, name=f"model-7b-{shape}", shape=shape, points=(point,))


def sold(*offers: NodeOffer, gpus_per_node: int = 1, **changes):
    return accelerator_class(gpus_per_node=gpus_per_node, offers=offers, **changes)


def asked(**changes):
    """Return a service of 3 requests/s of which only a plan is wanted."""
    return service(**({"mode": OperatingMode.PLAN} | changes))


def on(shape: Shape, market: Market = SPOT, zone: str = "a") -> OfferingKey:
    return OfferingKey(shape, market, zone)


@pytest.mark.parametrize(
    ("tensor", "pipeline", "gpus_per_node", "nodes"),
    [
        pytest.param(1, 1, 1, Fraction(1), id="one GPU, one node"),
        pytest.param(1, 1, 4, Fraction(1, 4), id="four beside each other"),
        pytest.param(3, 1, 4, Fraction(1), id="no room for a second"),
        pytest.param(2, 2, 4, Fraction(1), id="all stages on one node"),
        pytest.param(1, 3, 7, Fraction(1, 2), id="two pipelines on one node"),
        pytest.param(2, 2, 2, Fraction(2), id="a stage per node"),
        pytest.param(3, 2, 4, Fraction(2), id="a stage per node, a GPU left over"),
        pytest.param(2, 3, 4, Fraction(2), id="two stages and one"),
        pytest.param(1, 9, 4, Fraction(3), id="four, four and one"),
        pytest.param(4, 1, 2, None, id="a stage that no node holds"),
        pytest.param(4, 8, 3, None, id="stages that no node holds"),
    ],
)
def test_nodes_of_a_replica(tensor, pipeline, gpus_per_node, nodes):
    assert accelerator_class(gpus_per_node=gpus_per_node).nodes_of(Shape("l4", tensor, pipeline)) == nodes


def test_what_a_replica_takes_costs_and_risks():
    # Nodes of four GPUs: tp2 takes half of one, its three stages take two whole ones, of which a half stays empty.
    l4 = sold(NodeOffer(SPOT, "a", 3.0, 5, 0.1), gpus_per_node=4, gpu_quotas=((SPOT, 18),))
    own = Limits(gpu_quotas=(GpuQuota(12),))
    question = ask(asked(limits=own), (l4,), (shaped(2), shaped(2, 3)))
    half, two = on(Shape("l4", 2)), on(Shape("l4", 2, 3))
    assert question.problem.offerings == (
        Offering(half, 1.5, None, 0.1, COLD_START),
        Offering(two, 6.0, None, 0.2, COLD_START),
    )
    assert question.problem.all_caps == (
        Cap("nodes of l4, spot, a", 5, ((half, 0.5), (two, 2.0))),
        Cap("GPUs of l4, spot", 18, ((half, 2.0), (two, 8.0))),
        Cap("spec.limits.gpuQuotas", 12, ((half, 2.0), (two, 6.0)), shared=False),
    )
    assert question.out_of_question == ()
    assert [usd_per_replica_hour((l4,), key) for key in (half, two, on(Shape("l4", 8)))] == [1.5, 6.0, None]


# By hand, of nodes of two GPUs: nodes and requests/s of one replica.
TAKES = {Shape("l4"): (0.5, 2.0), Shape("l4", 2): (1.0, 5.0), Shape("l4", 2, 2): (2.0, 11.0)}


@pytest.mark.parametrize("interruptions", [0.0, 3.0])
@pytest.mark.parametrize(
    ("rate", "most_nodes"), [(1.0, 1), (4.0, 3), (9.0, 2), (9.0, 5), (13.0, 5), (18.0, 5), (18.0, 3)]
)
def test_the_plan_is_the_cheapest_of_all_fleets(rate, most_nodes, interruptions):
    l4 = sold(NodeOffer(SPOT, "a", 2.0, most_nodes, interruptions), gpus_per_node=2)
    profiles = tuple(shaped(each.tensor_parallel, each.pipeline_parallel, TAKES[each][1]) for each in TAKES)
    wanted = asked(forecast=Forecast(rate, Histogram(GRID, ((1.0,),))))
    found = propose(observed(service=wanted, classes=(l4,), profiles=profiles), NOW)
    best = _cheapest_by_enumeration(rate, most_nodes, interruptions)
    if best is None:
        assert isinstance(found.infeasible, Infeasible)
    else:
        plan_found = found.allocation
        assert found.infeasible is None
        assert plan_found.usd_per_hour + plan_found.interruptions_usd_per_hour == pytest.approx(best)


def _cheapest_by_enumeration(rate: float, most_nodes: int, interruptions: float) -> float | None:
    costs = []
    for counts in product(range(11), range(6), range(3)):
        of = tuple(zip(counts, TAKES.values(), strict=True))
        nodes, served = (math.fsum(count * takes[n] for count, takes in of) for n in (0, 1))
        if nodes <= most_nodes and served * 0.85 >= rate:
            lost = (count * nodes * max(nodes, 1.0) for count, (nodes, _) in of)
            costs.append(2.0 * (nodes + math.fsum(lost) * interruptions * 5 / 60))
    return min(costs, default=None)


class TestWhatAnEngineRunsOn:
    L4 = sold(NodeOffer(SPOT, "a", 1.0, None), NodeOffer(SPOT, "b", 1.0, None))
    PROFILES = (shaped(1, 2),)

    def test_for_a_service_that_is_carried_out_they_are_ruled_out(self):
        question = ask(service(), (self.L4,), (*self.PROFILES, shaped(2, 2)))
        assert question.problem.offerings == ()
        assert question.out_of_question == (
            OutOfQuestion("l4", Why.SEVERAL_NODES, REFUSAL, Shape("l4", 1, 2)),
            OutOfQuestion("l4", Why.NODE_TOO_SMALL, "l4-tp2-pp2 needs 2 GPUs on one node, which has 1", Shape("l4", 2, 2)),
        )  # fmt: skip

    def test_the_refusal_is_what_a_person_reads(self):
        found = plan(observed(service=service(), classes=(self.L4,), profiles=self.PROFILES), NOW)
        assert self._says(found, Condition.PLAN_FEASIBLE) == f"AcceleratorClass.spec.gpu.perNode: {REFUSAL}"
        assert not [each for each in found.actions if isinstance(each, LaunchEngine | EnsureNodePool)]

    def test_a_plan_alone_may_have_them_and_says_that_it_cannot_be_carried_out(self):
        unmade = observed(service=asked(), classes=(self.L4,), profiles=self.PROFILES, router=RouterState(exists=False))
        found = plan(unmade, NOW)
        assert found.status.proposal.wanted == {on(Shape("l4", 1, 2)): 1}
        assert found.status.proposal.usd_per_hour == 2.0
        assert self._says(found, Condition.CAPACITY_READY) == (
            "spec.mode is Plan, for a plan that cannot be carried out: l4-pp2 needs 2 nodes; engines run on one node "
            "so far; Auto makes another"
        )
        assert found.actions == ()

    def test_the_loss_of_a_zone_takes_whole_replicas(self):
        # 3 requests/s: one replica does, and after the loss of a zone another one must.
        safe = asked(spot=SpotPolicy(survive_zone_loss=1.0))
        found = propose(observed(service=safe, classes=(self.L4,), profiles=self.PROFILES), NOW)
        assert found.wanted == {on(Shape("l4", 1, 2), zone=zone): 1 for zone in ("a", "b")}

    @staticmethod
    def _says(found, kind: Condition) -> str:
        return next(each.message for each in found.status.conditions if each.type is kind)


def test_what_one_more_replica_would_take_of_a_cap():
    case = Case(asked(), (sold(NodeOffer(ON_DEMAND, "a", 1.0, 3), gpus_per_node=2),), (shaped(2, 3),))
    found = plan_of(case)
    assert isinstance(found, Allocation)
    assert found.replicas == ((on(Shape("l4", 2, 3), ON_DEMAND), 1),)
    assert [each.change for each in what_ifs(case, found) if "more of" in each.change] == [
        "3 nodes more of l4, on-demand, a"
    ]
