"""Plans whose utilisation fits their own fleet: they hold by the formula and by simulation, and rounds end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from medley.cli.inputs import Note
from medley.cli.planned import doubts
from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.latency import LatencyModel
from medley.core.names import Condition
from medley.core.profiles import Confidence, FittedLatency
from medley.core.service import Limits
from medley.core.workload import Demand, SizeGrid, Slo
from medley.kube.plan_status import plan_status
from medley.planning import mixture
from medley.planning.allocator import allocate
from medley.planning.conditions import of_proposal
from medley.planning.fleet import Truth
from medley.planning.ignorance import arrivals as arrivals_of
from medley.planning.problem import Allocation, AllocationProblem, Infeasible, ShapeThroughput
from medley.planning.proposal import propose
from medley.planning.question import ask
from medley.planning.routing import RoutingTable
from medley.planning.settled import Judged, Promise, settled
from medley.simulation import arrivals
from medley.simulation.arrivals import Requests
from medley.simulation.fleet import Replica, serve
from medley.testing.builders import NOW, observed, profile, steady

GRID = SizeGrid((200, 1000, 4000), (50, 300))
SLO = Slo(99, timedelta(seconds=2), timedelta(milliseconds=60))
SMALL, LARGE = Shape("small"), Shape("large")
MODELS = {
    SMALL: LatencyModel(0.030, 0.00035, 0.0003, 1e-6, 12_000, 256, 2048),
    LARGE: LatencyModel(0.008, 0.00004, 0.00005, 3e-7, 110_000, 256, 2048),
}
PRICES = {SMALL: 1.0, LARGE: 5.0}
PROMISE = Promise(SLO, longest=4300)


def problem(rate: float, *, market: Market = Market.ON_DEMAND, **changed) -> AllocationProblem:
    demand = Demand(
        GRID, tuple((bucket, rate * weight) for bucket, weight in zip(GRID.buckets(), (4, 2, 2, 1, 1, 1), strict=True))
    )
    return AllocationProblem(
        demand,
        tuple(Offering(OfferingKey(shape, market, "z"), PRICES[shape], None) for shape in MODELS),
        tuple(
            ShapeThroughput(shape, tuple((bucket, 1.0) for bucket in mixture.served(model, SLO, GRID, longest=4300)))
            for shape, model in MODELS.items()
        ),
        **{"limits": Limits(max_replicas=1000, min_replicas=0), **changed},
    )


@pytest.mark.parametrize("rate", [0.05, 3.0])
def test_the_plan_keeps_the_promise_in_the_simulated_fleet(rate):
    asked = problem(rate)
    found = settled(asked, MODELS, PROMISE)
    assert found.holds
    chance = np.random.default_rng(3)
    inputs, outputs = arrivals.sizes(asked.demand, 3000, chance, largest=True)
    requests = Requests(arrivals.poisson(asked.demand.total, 3000, chance), inputs, outputs)
    shares = {bucket: [] for bucket, _ in asked.demand.requests_per_second}
    for each in found.answer.shares:
        shares[each.bucket].append((each.shape.key, each.share))
    fleet = [
        Replica(f"{key.shape}-{number}", key.shape.key, MODELS[key.shape])
        for key, count in found.answer.replicas
        for number in range(count)
    ]
    table = RoutingTable(GRID, {bucket: tuple(parts) for bucket, parts in shares.items()})
    assert serve(requests, fleet, table).after(500).attainment(SLO) >= 0.99


def test_a_plan_at_full_capacity_would_not_hold():
    asked = problem(3.0)
    careless = settled(replace(asked), MODELS, replace(PROMISE, slo=replace(SLO, percentile=1)))
    careful = settled(asked, MODELS, PROMISE)
    assert careless.answer.usd_per_hour < careful.answer.usd_per_hour
    assert all(each.busy <= 1 + 1e-6 for each in careless.judged)


def test_bursts_cost_money():
    costs = [
        settled(problem(3.0), MODELS, replace(PROMISE, dispersion=each)).answer.usd_per_hour for each in (1.0, 16.0)
    ]
    assert costs[0] < costs[1]


def test_the_same_question_has_the_same_answer_within_bounded_rounds():
    asked: list[AllocationProblem] = []

    def counting(each: AllocationProblem):
        asked.append(each)
        return allocate(each)

    one, other = (settled(problem(1.0), MODELS, PROMISE, solve=counting) for _ in range(2))
    assert one == other
    assert len(asked) / 2 <= 12


def test_a_demand_that_cannot_be_met_is_said_and_does_not_hold():
    found = settled(problem(3.0, limits=Limits(max_replicas=1, min_replicas=0)), MODELS, PROMISE)
    assert isinstance(found.answer, Infeasible)
    assert not found.holds


def test_a_plan_that_is_fuller_than_the_promise_allows_says_so():
    def careless(each: AllocationProblem):
        return allocate(replace(each, utilisation=1.0, utilisation_of=()))

    found = settled(problem(3.0), MODELS, PROMISE, solve=careless)
    assert not found.holds
    assert found.doubtful == tuple(each for each in found.judged if each.reserve < 1)
    assert all("the promise is shown to hold up to" in str(each) for each in found.doubtful)


def test_doubts_reach_whoever_reads_the_plan():
    seen = steady()
    sure = propose(seen, NOW)
    doubt = Judged(Shape("l4"), 2, 0.9, 0.8, "ttft")
    unused = Judged(Shape("h100"), 1, 0.9, 0.8, "tpot")
    found = replace(sure, question=replace(sure.question, doubtful=(doubt, unused)))
    said = "l4: the promise is shown to hold up to 80% of the traffic that it would get, by ttft"
    assert (sure.doubts, found.doubts) == ((), (said,))
    assert plan_status(found, {}).doubts == (said,)
    assert doubts(found) == (Note(f"in doubt: {said}", warning=True),)
    feasible = {each.type: each for each in of_proposal(seen, found, NOW)}[Condition.PLAN_FEASIBLE]
    assert (feasible.status, feasible.message) == (
        Truth.TRUE,
        f"2 replicas for 0.80 USD per hour; in doubt: {said}; loosen spec.slo or leave the class out",
    )


def test_what_routers_cannot_see_costs_no_less_and_is_judged_by_what_really_comes():
    asked = problem(3.0)
    seeing = settled(asked, MODELS, PROMISE)
    blind = settled(asked, MODELS, PROMISE, classes=arrivals_of(asked.demand))
    assert blind.holds
    assert {share.bucket.output for share in blind.answer.shares} == {1}  # one class per input range
    assert blind.answer.usd_per_hour >= 0.95 * seeing.answer.usd_per_hour


def test_shapes_without_a_model_keep_what_the_problem_says():
    asked = problem(0.5)
    found = settled(asked, {LARGE: MODELS[LARGE]}, PROMISE)
    assert next(row for row in found.problem.throughput if row.shape == SMALL) == asked.throughput[0]
    assert found.problem.utilisations[asked.offerings[0].key] == asked.utilisation


def test_the_operator_plans_shapes_with_a_model_by_resources_and_their_own_utilisation():
    """The builders' service and class, whose profile is a latency model alone."""
    fitted = FittedLatency(
        MODELS[LARGE], error=0.1, largest_prefill_tokens=4096, largest_sequences=64, largest_context_tokens=4096
    )
    one = observed(profiles=(profile("l4", points=(), latency=fitted, confidence=Confidence.HIGH),))
    found = ask(one.service, one.classes, one.profiles)
    (row,) = found.problem.throughput
    assert (row.throughput_row, [load.name for load in row.loads]) == (False, ["time", "memory", "slots", "tokens"])
    assert {u for _, u in found.problem.utilisation_of} != {found.problem.utilisation}
    assert isinstance(allocate(found.problem), Allocation)
    key = found.problem.offerings[0].key
    again = ask(one.service, one.classes, one.profiles, fleet=((key, 1),))
    assert again.problem.utilisation_of == found.problem.utilisation_of
    assert again.problem.fleet == ((key, 1),)
