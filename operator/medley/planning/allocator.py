"""Choose how many replicas of what: the cheapest mix that serves the demand within the SLO and the bounds.

    allocate(problem: AllocationProblem) -> Allocation | Infeasible          raises SolverError, never an empty plan

Called by `reconcile.plan`, `medley plan` and the simulator. The programme is in `programme.py` and `cover.py`, its
formulas in docs/allocation.md; what cannot be met is worked out in `shortage.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from medley.core.accelerators import Market, OfferingKey
from medley.core.errors import SolverError
from medley.core.workload import Bucket
from medley.planning import cover, programme
from medley.planning.cover import Answer, Learnt
from medley.planning.ilp import Solved, Terms, Undecided, Unsolvable
from medley.planning.problem import EXACT, MICRODOLLARS, Allocation, AllocationProblem, Infeasible, Share
from medley.planning.programme import Replicas
from medley.planning.separation import Separation
from medley.planning.shortage import shortage

Counts = tuple[tuple[OfferingKey, int], ...]

_SMALLEST_SHARE = 1e-4
_OVERLOAD_TOLERANCE = 1e-3
_SOON = 1e-2  # gap that is near enough where what is missing is missing now


def allocate(problem: AllocationProblem) -> Allocation | Infeasible:
    """Return the cheapest allocation, or what cannot be met and which bounds are in the way.

    Of equally cheap allocations: fewest replicas to launch beyond the fleet, then the first by name.
    When the node limit ends the search early, the best plan found is returned with its gap.
    """
    return reallocate(problem)[0]


def reallocate(
    problem: AllocationProblem, learnt: Learnt | None = None, start: Counts | None = None
) -> tuple[Allocation | Infeasible, Learnt]:
    """Return what `allocate` returns, quicker if a similar problem was solved before, and what was learnt this time.

    `learnt`: of a problem with other prices, caps, offerings or fleet, or with a demand a little different. It changes
    how long the answer takes; which of several plans within the gap is found may change too. `start`: the replicas of
    a plan that is known to serve this problem, likewise.
    """
    answer = _solved(problem, learnt, start)
    found = _found(problem, answer)
    if found is not None:
        return found, answer.learnt
    short = shortage(problem)
    best = allocation(short.problem, short.best, Separation(short.problem), served=short.served)
    return Infeasible(short.unmet, short.bindings, best), answer.learnt


def attempted(
    problem: AllocationProblem, learnt: Learnt | None = None, start: Counts | None = None
) -> tuple[Allocation | None, Learnt]:
    """Return what `reallocate` returns, but None, without working out what is short, where there is no allocation."""
    answer = _solved(problem, learnt, start)
    return _found(problem, answer), answer.learnt


def extended(problem: AllocationProblem, learnt: Learnt | None = None) -> Allocation | None:
    """Return the cheapest plan that keeps every replica of the fleet that is on offer; None: there is none.

    For the moment after a loss: quicker than a new plan, and nothing that serves is taken away. The gap is that
    to the plans that may take away.
    """
    offered = {offering.key: offering.max_replicas for offering in problem.offerings}
    kept = {
        Replicas(key): float(count if offered[key] is None else min(count, offered[key] or 0))
        for key, count in problem.fleet
        if key in offered
    }
    if (problem.solver_effort.relative_gap or 0.0) > EXACT:
        problem = replace(problem, effort=replace(problem.effort, relative_gap=_SOON))
    return _found(problem, cover.completed(problem, programme.objective(problem), kept, learnt or Learnt()))


def cheapest(problem: AllocationProblem) -> Allocation | None:
    """Return what `allocate` returns, or None, without working out what is short, where there is no allocation."""
    return _found(problem, cover.solved(problem, _objectives(problem)))


def _solved(problem: AllocationProblem, learnt: Learnt | None, start: Counts | None) -> Answer:
    values = None if start is None else programme.values(problem, dict(start))
    return cover.solved(problem, _objectives(problem), learnt=learnt, start=values)


def _objectives(problem: AllocationProblem) -> tuple[Terms, Terms]:
    return programme.objective(problem), programme.preference(problem)


def _found(problem: AllocationProblem, answer: Answer) -> Allocation | None:
    match answer.found:
        case Solved() as found:
            return allocation(problem, found, answer.separation)
        case Unsolvable():
            return None
        case Undecided():
            raise SolverError("no plan was found within the solver's limits; the plan that stands is kept")


def on_demand_only(problem: AllocationProblem) -> AllocationProblem:
    """Return the counterfactual that savings are shown against: this programme without the spot market.

    Same demand, SLO, utilisation, caps and maxReplicas. Budgets are left out, since they bound what is bought and
    this is not bought; the fleet too, since ties do not change a price.
    """
    kept = tuple(offering for offering in problem.offerings if offering.key.market is not Market.SPOT)
    keys = {offering.key for offering in kept}
    return replace(
        problem,
        offerings=kept,
        caps=tuple(
            replace(cap, uses=tuple((key, use) for key, use in cap.uses if key in keys))
            for cap in problem.caps
            if not cap.drawn
        ),
        limits=replace(problem.limits, max_usd_per_hour=None),
        fleet=(),
        utilisation_of=tuple((key, value) for key, value in problem.utilisation_of if key in keys),
        change_usd=(),
        surcharge_usd=(),
    )


def allocation(
    problem: AllocationProblem, solved: Solved, separation: Separation, *, served: Mapping[Bucket, float] | None = None
) -> Allocation:
    """Return a solution as an allocation: counts rounded and priced anew, shares levelled.

    `served`: requests/s per bucket that are served, if not all of the demand.
    """
    offerings = {offering.key: offering for offering in problem.offerings}
    counts = {key: solved.count(Replicas(key)) for key in offerings}
    replicas = tuple(sorted((key, count) for key, count in counts.items() if count))
    bill = math.fsum(offerings[key].usd_per_hour * count for key, count in replicas)
    risk = math.fsum(offerings[key].interruptions_usd_per_hour * count for key, count in replicas)
    existing, surcharges = dict(problem.fleet), dict(problem.surcharge_usd)
    more = math.fsum(surcharges.get(key, 0.0) * count for key, count in replicas) + math.fsum(
        usd * max(0, counts.get(key, 0) - existing.get(key, 0)) for key, usd in problem.change_usd
    )
    objective = bill + risk + more
    return Allocation(
        replicas=replicas,
        shares=_shares(
            problem,
            separation,
            dict(replicas),
            dict(problem.demand.requests_per_second) if served is None else served,
        ),
        usd_per_hour=round(bill, MICRODOLLARS),
        gap=solved.gap,
        interruptions_usd_per_hour=round(risk, MICRODOLLARS),
        objective=objective,
        bound=objective * (1 - solved.gap) if math.isfinite(solved.gap) else 0.0,
    )


def _shares(
    problem: AllocationProblem,
    separation: Separation,
    replicas: Mapping[OfferingKey, int],
    served: Mapping[Bucket, float],
) -> tuple[Share, ...]:
    """Return the shares that leave the busiest shape least busy, the replicas being given."""
    if not served:
        return ()
    capacity = dict.fromkeys(separation.shapes, 0.0)
    for key, count in replicas.items():
        if key.shape in capacity:
            capacity[key.shape] += problem.utilisations[key] * count
    demand = dict(problem.demand.requests_per_second)
    parts = np.array([served.get(bucket, 0.0) / demand[bucket] for bucket in separation.buckets])
    shares, busy = separation.levelled(np.array(list(capacity.values())), parts)
    if not served.keys() <= set(separation.buckets) or busy > 1 + _OVERLOAD_TOLERANCE:
        raise SolverError("the replicas that the solver chose do not serve the demand; the plan that stands is kept")
    kept = np.where(shares >= _SMALLEST_SHARE * parts, shares, 0.0)
    whole = kept.sum(axis=0)
    found = [
        Share(separation.buckets[bucket], separation.shapes[shape], float(kept[shape, bucket] / whole[bucket]))
        for shape, bucket in np.argwhere((kept > 0) & (parts > 0)).tolist()
    ]
    return tuple(sorted(found))
