"""Choose how many replicas of what: the cheapest mix that serves the demand within the SLO and the bounds.

    allocate(problem: AllocationProblem) -> Allocation | Infeasible          raises SolverError, never an empty plan

Called by `reconcile.plan`, `medley plan` and the simulator. The programme is in `programme.py` and `cover.py`, its
formulas in docs/allocation.md; what cannot be met is worked out in `shortage.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from medley.core.accelerators import Market, OfferingKey, Shape
from medley.core.errors import SolverError
from medley.core.workload import Bucket
from medley.planning import cover, programme
from medley.planning.ilp import (
    Effort,
    Programme,
    Row,
    Solved,
    Undecided,
    Unsolvable,
    Variable,
    minimise,
)
from medley.planning.problem import MICRODOLLARS, Allocation, AllocationProblem, Infeasible, Share
from medley.planning.programme import Replicas
from medley.planning.shortage import shortage


@dataclass(frozen=True, slots=True)
class _Flow:
    """Names the variable: share of a bucket that a shape serves."""

    bucket: Bucket
    shape: Shape


_SMALLEST_SHARE = 1e-4
_OVERLOAD_TOLERANCE = 1e-3


def allocate(problem: AllocationProblem) -> Allocation | Infeasible:
    """Return the cheapest allocation, or what cannot be met and which bounds are in the way.

    Of equally cheap allocations: fewest replicas to launch beyond the fleet, then the first by name.
    When the node limit ends the search early, the best plan found is returned with its gap.
    """
    objectives = (programme.cost(problem), programme.preference(problem))
    match cover.solved(problem, objectives):
        case Solved() as found:
            return allocation(problem, found)
        case Unsolvable():
            short = shortage(problem)
            return Infeasible(short.unmet, short.bindings, allocation(problem, short.best, served=short.served))
        case Undecided():
            raise SolverError("no plan was found within the solver's limits; the plan that stands is kept")


def on_demand_only(problem: AllocationProblem) -> AllocationProblem:
    """Return the counterfactual that savings are shown against: this programme without the spot market.

    Same demand, SLO, utilisation, caps and maxReplicas. The budget is left out, since it bounds what is bought and
    this is not bought; the fleet too, since ties do not change a price.
    """
    kept = tuple(offering for offering in problem.offerings if offering.key.market is not Market.SPOT)
    keys = {offering.key for offering in kept}
    return replace(
        problem,
        offerings=kept,
        caps=tuple(
            replace(cap, uses=tuple((key, use) for key, use in cap.uses if key in keys)) for cap in problem.caps
        ),
        limits=replace(problem.limits, max_usd_per_hour=None),
        fleet=(),
        utilisation_of=tuple((key, value) for key, value in problem.utilisation_of if key in keys),
    )


def allocation(
    problem: AllocationProblem, solved: Solved, *, served: Mapping[Bucket, float] | None = None
) -> Allocation:
    """Return a solution as an allocation: counts rounded and priced anew, shares levelled.

    `served`: requests/s per bucket that are served, if not all of the demand.
    """
    counts = {offering.key: solved.count(Replicas(offering.key)) for offering in problem.offerings}
    replicas = tuple(sorted((key, count) for key, count in counts.items() if count))
    prices = {offering.key: offering.usd_per_hour for offering in problem.offerings}
    return Allocation(
        replicas=replicas,
        shares=_levelled(
            problem, dict(replicas), dict(problem.demand.requests_per_second) if served is None else served
        ),
        usd_per_hour=round(math.fsum(prices[key] * count for key, count in replicas), MICRODOLLARS),
        gap=solved.gap,
    )


def _levelled(
    problem: AllocationProblem, replicas: Mapping[OfferingKey, int], served: Mapping[Bucket, float]
) -> tuple[Share, ...]:
    """Return the shares that leave the busiest shape least busy, the replicas being given.

    The programme that chose the replicas fills one shape before it uses the next; latency is better when all are
    equally busy, at the same price.
    """
    if not served:
        return ()
    usable: dict[Shape, float] = {}
    for key, count in replicas.items():
        usable[key.shape] = usable.get(key.shape, 0.0) + problem.utilisations[key] * count
    busiest = "busiest"
    variables = [Variable(busiest)]
    rows: list[Row] = []
    loads: dict[Shape, dict[object, float]] = {shape: {busiest: -1.0} for shape in usable}
    for bucket, rate in sorted(served.items()):
        able = [shape for shape in sorted(usable) if bucket in problem.rates[shape]]
        flows = [_Flow(bucket, shape) for shape in able]
        variables += [Variable(flow, upper=1.0) for flow in flows]
        rows.append(Row(dict.fromkeys(flows, 1.0), at_least=1.0, at_most=1.0))
        for flow in flows:
            loads[flow.shape][flow] = rate / problem.rates[flow.shape][bucket] / usable[flow.shape]
    rows += [Row(terms, at_most=0.0) for terms in loads.values()]
    found = minimise(Programme(tuple(variables), tuple(rows)), {busiest: 1.0}, Effort())
    if not isinstance(found, Solved) or found.objective > 1 + _OVERLOAD_TOLERANCE:
        raise SolverError("the replicas that the solver chose do not serve the demand; the plan that stands is kept")
    return _shares(found)


def _shares(solved: Solved) -> tuple[Share, ...]:
    by_bucket: dict[Bucket, dict[Shape, float]] = {}
    for key, share in solved.values.items():
        if isinstance(key, _Flow) and share >= _SMALLEST_SHARE:
            by_bucket.setdefault(key.bucket, {})[key.shape] = share
    return tuple(
        Share(bucket, shape, share / math.fsum(parts.values()))
        for bucket, parts in sorted(by_bucket.items())
        for shape, share in sorted(parts.items())
    )
